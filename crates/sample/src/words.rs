//! The words and tables from which rows are built. All invented.

/// Digits of base 36.
pub const BASE36: &[u8; 36] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Products with the same market behaviour.
pub struct Segment {
    /// Percent of the rows with a low and with a medium discount; the rest have a high one.
    pub discounts: [u64; 2],
    /// Minimum rating in tenths of a star, and the number of sides of the three dice that are added to it.
    pub rating: [u64; 2],
    /// Number of reviews: the lowest power of two, and how many powers there are.
    pub reviews: [u64; 2],
    /// Brand names.
    pub brands: &'static [&'static str],
}

const ACCESSORY: Segment = Segment { discounts: [25, 43], rating: [39, 3], reviews: [11, 8], brands: &[
    "Voltano", "Lumikra", "Cordiva", "Zapnest", "Ampiko", "Tarangi", "Pluggo", "Sonavi", "Bytewala", "Kebulo",
] };
const HOUSEHOLD: Segment = Segment { discounts: [28, 56], rating: [37, 4], reviews: [8, 7], brands: &[
    "Gharika", "Homelio", "Rasovia", "Kitchora", "Ujalika", "Morniva", "Brewanta", "Nestari", "Dhobix", "Panvelo",
] };
const PREMIUM: Segment = Segment { discounts: [78, 19], rating: [40, 3], reviews: [3, 9], brands: &[
    "Aurelith", "Vistaro", "Nordhavn", "Kaiyoden", "Glasmora", "Zenthora", "Omniveda",
] };
/// No-name bargains, which exist in every affordable line.
pub const BARGAIN: Segment = Segment { discounts: [1, 8], rating: [28, 5], reviews: [1, 10], brands: &[
    "ZYQORO", "HUVXIN", "OQILLO", "TEKZUNG", "WOWKART99", "Generik", "XIPPO-TEC", "MYJOYA", "VRRTON",
] };

/// A kind of product.
pub struct Line {
    /// Relative frequency.
    pub weight: usize,
    /// Market segment.
    pub segment: &'static Segment,
    /// Usual price in rupees.
    pub price: u64,
    /// Selling points.
    pub points: &'static [&'static str; POINTS],
    /// Variants: lengths, colours, capacities.
    pub options: &'static [&'static str],
    /// Category path, separated by `|`.
    pub category: &'static str,
    /// Product noun of the title.
    pub noun: &'static str,
}

const fn line(
    weight: usize, segment: &'static Segment, price: u64, points: &'static [&'static str; POINTS],
    options: &'static [&'static str], category: &'static str, noun: &'static str,
) -> Line {
    Line { weight, segment, price, points, options, category, noun }
}

/// All product lines.
pub static LINES: &[Line] = &[
    line(26, &ACCESSORY, 249, TECH, LENGTHS, "Computing|Cables&Adapters|USB-C", "Braided USB-C Cable"),
    line(8, &ACCESSORY, 299, TECH, LENGTHS, "Electronics|Television|Cables", "4K HDMI Cable"),
    line(12, &ACCESSORY, 649, TECH, POWERS, "Electronics|Phones|Power|Chargers", "Fast Wall Charger"),
    line(15, &ACCESSORY, 999, TECH, HOURS, "Electronics|Audio|Headphones|Wireless", "Wireless Earbuds"),
    line(8, &ACCESSORY, 1_199, TECH, POWERS, "Electronics|Phones|Power|PowerBanks", "Pocket Power Bank"),
    line(6, &ACCESSORY, 499, TECH, STORES, "Electronics|Storage|MemoryCards", "microSD Memory Card"),
    line(12, &ACCESSORY, 599, TECH, PACKS, "Computing|Keyboards,Mice&Pens|Mice", "Silent Wireless Mouse"),
    line(8, &ACCESSORY, 749, TECH, LAPTOPS, "Computing|Laptops|Bags&Sleeves", "Laptop Sleeve"),
    line(6, &HOUSEHOLD, 1_899, TECH, PACKS, "Computing|Networks|Routers", "Dual Band Router"),
    line(7, &HOUSEHOLD, 1_299, HOME, LITRES, "Kitchen&Table|Machines|Kettles&Boilers", "Electric Kettle"),
    line(9, &HOUSEHOLD, 2_799, HOME, WATTS, "Kitchen&Table|Machines|Mixers", "Mixer Grinder"),
    line(7, &HOUSEHOLD, 699, HOME, PACKS, "Kitchen&Table|Storing|LunchBoxes", "Steel Lunch Box"),
    line(7, &HOUSEHOLD, 1_599, HOME, WATTS, "House&Garden|Laundry|Irons", "Steam Iron"),
    line(9, &HOUSEHOLD, 1_999, HOME, WATTS, "House&Garden|Warm,Cool&Fresh|Heaters", "Room Heater"),
    line(4, &HOUSEHOLD, 279, HOME, PACKS, "Office|Paper|Notebooks&Diaries", "Ruled Notebook"),
    line(3, &HOUSEHOLD, 199, HOME, PACKS, "Office|Writing|Pens", "Gel Pen Set"),
    line(2, &HOUSEHOLD, 1_099, TECH, LENGTHS, "Music&Recording|Microphones", "Condenser Microphone"),
    line(2, &HOUSEHOLD, 449, HOME, PACKS, "Toys&Learning|Drawing", "Drawing Slate"),
    line(2, &HOUSEHOLD, 1_799, HOME, WATTS, "Motoring|CarCare|Cleaners", "Car Vacuum Cleaner"),
    line(1, &HOUSEHOLD, 999, HOME, PACKS, "Health&Sport|Scales", "Body Weight Scale"),
    line(7, &PREMIUM, 31_000, TECH, SCREENS, "Electronics|Television|Screens", "4K Smart LED TV"),
    line(6, &PREMIUM, 22_000, TECH, STORES, "Electronics|Phones|Smartphones", "5G Smartphone"),
    line(4, &PREMIUM, 58_000, TECH, LAPTOPS, "Computing|Laptops|Thin&Light", "Thin and Light Laptop"),
    line(4, &PREMIUM, 24_000, HOME, KILOS, "House&Garden|Laundry|Washers|FrontLoad", "Front Load Washing Machine"),
    line(3, &PREMIUM, 14_000, HOME, LITRES, "Kitchen&Table|Machines|WaterPurifiers", "RO+UV Water Purifier"),
];

const LENGTHS: &[&str] = &["0.5 m", "1 m", "1.2 m (4 ft)", "1.5 m, Pack of 2", "2 m", "3 m (10 ft)"];
const POWERS: &[&str] = &["18W", "20W", "33W with Cable", "45W, 2 Ports", "65W"];
const HOURS: &[&str] = &["24 Hours", "30 Hours, 2 Mics", "40 h Playtime", "60 Hours with Case"];
const STORES: &[&str] = &["64GB", "128GB", "8GB RAM, 128GB", "256GB", "12GB RAM, 256GB"];
const PACKS: &[&str] = &["Pack of 1", "Set of 2", "Pack of 3", "Set of 5", "Pack of 10"];
const LAPTOPS: &[&str] = &["13.3\"", "14\" (35.6 cm)", "15.6\" (39.6 cm)", "16\""];
const SCREENS: &[&str] = &[
    "80 cm (32\")", "108 cm (43\")", "127 cm (50\")", "139 cm (55\")", "164 cm (65\")",
];
const LITRES: &[&str] = &["0.8 L", "1.5 Litres", "1.8 L", "2 Litres", "7 L"];
const WATTS: &[&str] = &["500 W", "750W, 3 Jars or Settings", "1200 W", "1500 Watt", "2000W"];
const KILOS: &[&str] = &["6 kg", "6.5 kg, 5 Star", "7 kg", "8 kg, Inverter"];

/// Series names in titles.
pub const SERIES: &[&str] = &[
    "A1", "Prime", "Go", "Swift-200", "Max", "Zen", "Classic", "X7", "Pro+", "Mini", "Ultra", "Leaf", "One",
];
/// Features in titles.
pub const FEATURES: &[&str] = &[
    "Lightweight & Sturdy", "with 1 Year Warranty", "Compatible with Most Brands", "Energy Saving",
    "for Home, Office & Travel", "Anti-Slip Base", "Quick Set-up", "Made for Daily Use",
    "with Storage Pouch, Manual & Cleaning Cloth", "Shock & Heat Protection", "Gift Ready Box",
];
/// Colours in titles.
pub const COLOURS: &[&str] = &[
    "Black", "Midnight Blue", "Grey", "White", "Leaf Green", "Red, Matte", "Silver", "Teal", "Rose Gold", "Ivory",
];

/// Number of selling points per line.
pub const POINTS: usize = 9;
const TECH: &[&str; POINTS] = &[
    "Fast and steady: moves data at up to 480 Mbps and charges without a break, even while you watch a film",
    "Works with what you have: phones, tablets, laptops, speakers and most devices made in the last six years",
    "Built to be bent: tested for more than 12,000 bends, with a woven jacket and reinforced ends",
    "Safe at every watt: guards against over-current, over-heating, surges and short circuits",
    "【Small & light】 Slips into a pocket, a pencil case or the side of a backpack; weighs less than two eggs",
    "Plug and play – no driver, no app, no account; it is ready in about ten seconds",
    "A quiet status light shows when it is charging, when it is full, and when something is wrong",
    "In the box: 1 unit, a short guide, a warranty card and a reusable tie; adapter sold separately",
    "All-day power: a full charge lasts a working day, and ten minutes give two hours more, *conditions apply",
];
const HOME: &[&str; POINTS] = &[
    "Food-grade materials inside, cool-touch shell outside; no smell, no rust, no aftertaste",
    "Easy to clean: wide opening, rounded corners and parts that come apart without a tool",
    "Saves up to 30% of effort and electricity compared with older models, under test conditions",
    "Sits firmly: rubber feet, a low centre of gravity and a cord that winds away underneath",
    "Fits small kitchens and rented flats; about the footprint of an A4 sheet",
    "Quiet enough for a sleeping baby in the next room (58 dB, measured at one metre)",
    "Comes with 2 year warranty on the product and 5 years on moving parts, *conditions apply",
    "Thoughtful gift for weddings, Diwali or a first home; arrives in a sturdy printed box",
    "Note: colour may differ a little from the picture because of \"studio\" light",
];
/// Last bullet points of descriptions, after brand and noun.
pub const PROMISES: &[&str] = &[
    "6 months warranty from the date of purchase, claimed by email in two working days",
    "10 days replacement if it is not what you expected, no questions asked",
    "for any doubt, call our helpline from 9:00 to 18:00, Monday to Saturday",
    "designed in Pune, packed with care; please record a video while opening the box",
];

/// First names of reviewers.
pub const FIRST_NAMES: &[&str] = &[
    "Aarav", "Ishita", "Rohan", "meera", "Kabir", "Ananya", "S.", "Devika", "Farhan", "Gurpreet", "HARISH",
    "Joseph", "Kavya", "Lakshmi", "Mohan", "Nikhil", "Ojas", "Pooja", "R. K.", "Sana", "Tenzin", "Uma", "Vikram",
    "Yash", "Zoya", "A Customer",
];
/// Last names of reviewers.
pub const LAST_NAMES: &[&str] = &[
    "Rao", "Menon", "gupta", "Das", "Iyer", "Khan", "Singh", "Patil", "Bose", "D'Souza", "Verma", "Nair",
    "SHARMA", "Jain", "(Mumbai)",
];
/// Whom or what a product was bought for.
pub const PEOPLE: &[&str] = &[
    "my parents.", "my daughter's hostel room.", "the office.", "daily use.", "my brother, who loves it.",
];
/// Emoji in reviews.
pub const EMOJI: &[&str] = &["👍", "😍😍", "⭐⭐⭐⭐⭐", "🙏", "😡", "👌🏽", "❤️", "🔥🔥"];

/// Titles of negative and of positive reviews.
pub const TITLES: [&[&str]; 2] = [SAD_TITLES, GLAD_TITLES];
const GLAD_TITLES: &[&str] = &[
    "Good product", "Value for money", "Nice, but the box was torn", "Works well", "Just go for it!",
    "Does the job", "Super", "Best of the four I tried", "Five stars from my family", "Worth every rupee",
    "Better than the photos", "ok", "पैसे वसूल",
];
const SAD_TITLES: &[&str] = &[
    "Not good", "Stopped working", "Waste of money", "Average", "Could be better", "Not as described",
    "Don't buy", "Poor quality, poor service",
];
/// First sentences of negative and of positive reviews.
pub const OPINIONS: [&[&str]; 2] = [COMPLAINTS, PRAISE];
const PRAISE: &[&str] = &[
    "Very good product for the price, I would buy it again.", "Works exactly as described.",
    "Good quality, quick delivery, no complaints so far.",
    "I was doubtful after reading other reviews, but it has been flawless for three months.", "Nice",
    "Value for money", "Using it every day since March and it still looks new.",
    "Set up in five minutes, even my grandfather managed it.", "They call it premium and for once that is true.",
    "बहुत बढ़िया, सबको पसंद आया।", "Build is solid, finish is neat, and it does what I need.",
    "Compared four others before choosing this one, and I don't regret it.",
    "Good one, go for it without a second thought.",
];
const COMPLAINTS: &[&str] = &[
    "Stopped working after two weeks.", "The one I got was clearly used before, with scratches all over.",
    "Not worth it, spend a little more elsewhere.", "Says \"original\" on the box, but the logo is misspelt.",
    "It gets hot, smells of plastic, and the switch is loose.", "Bad",
    "Customer care picked up once, promised a call, and never called.",
    "Looks nothing like the picture; much smaller and much cheaper.", "Worked on day one. On day two it did not.",
    "Average at best, I expected more from the description.",
];
/// Further sentences of reviews.
pub const DETAILS: &[&str] = &[
    "Packing was fine and it arrived a day early.", "The manual is only in English, and in very small print.",
    "Colour is a bit darker than in the photos.",
    "I have used it for about two months now, mostly in the evening.",
    "For this price you can't expect everything, but the basics are right.",
    "My earlier one from another brand lasted six years, let's see about this.",
    "It weighs less than I thought and fits in the drawer.",
    "Pros: simple, quiet, easy to clean. Cons: short cord.", "The seller answered my question within an hour.",
    "There is a small gap on the left side, not a big issue.", "I measured it: 2 cm smaller than stated.",
    "Battery or power use is about what they promise, perhaps 10% less.",
    "One thing to note; it does not come with an adapter, you must buy that yourself.",
    "After the first wash there was no change in colour or shape.",
    "Installation was done the next day by a polite technician, who charged nothing.",
    "Will update this review after six months.", "Neighbours have ordered two of them since.",
    "The button needs a firm press, which is fine by me, but not for a child.",
];
