//! A generator of synthetic product rows, as messy as those of a real shop.
//!
//! Input: a seed. Output: an endless stream of rows of sixteen text fields ([`COLUMNS`]), and functions that write them as CSV
//! or NDJSON. The same seed gives the same bytes on any machine: row `i` depends on the seed and `i` only, and all arithmetic
//! is on integers.
//!
//! The rows contain four segments, each with its own prices, discounts, ratings and review counts: cheap accessories with many
//! reviews, household goods, premium appliances with few buyers, and no-name bargains with low ratings. All brands, people and
//! opinions in them are invented.

#![warn(missing_docs)]

mod format;

mod orders;
#[rustfmt::skip]
mod words;

pub use format::{csv_header, csv_row, ndjson_row};
pub use orders::{ORDER_COLUMNS, Orders};

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use words::*;

/// The fields of a row, in the order in which they are written. Prices are in rupees (`₹1,08,990`), the discount in percent
/// (`64%`), the rating in stars (`2.0` to `5.0`, or `|`); `rating_count` is a number of people (`2,19,763`, or empty); the
/// items of lists are separated by commas or `|`.
#[rustfmt::skip]
pub const COLUMNS: [&str; 16] = [
    "product_id", "product_name", "category", "discounted_price", "actual_price",
    "discount_percentage", "rating", "rating_count", "about_product", "user_id", "user_name",
    "review_id", "review_title", "review_content", "img_link", "product_link",
];

/// Upper bound of `rating_count`, exclusive.
const MOST_REVIEWS: u64 = 430_000;
/// Maximum number of reviews shown in a row.
const VOICES: u64 = 8;
/// Number of values of half a product id: four digits of base 36.
const HALF_ID: u64 = 36u64.pow(4);

/// Number of rows and seed of the sample that ships with tercile, `data/products.csv`.
pub const SAMPLE: (u64, u64) = (1465, 42);

/// The shipped sample as CSV.
pub fn sample() -> Vec<u8> {
    let (rows, seed) = SAMPLE;
    let mut csv = Vec::new();
    csv_header(&mut csv);
    let mut generator = Generator::new(seed);
    for _ in 0..rows {
        csv_row(&generator.next_row(), &mut csv);
    }
    csv
}

/// A stream of product rows; holds one row in memory.
pub struct Generator {
    key: u64,
    row: u64,
    draw: Draw,
    /// The product lines, each repeated `weight` times.
    wheel: Vec<&'static Line>,
    /// Random letters and digits. Codes are slices of it, which is much faster than to draw each character.
    pool: String,
    /// The concatenated fields of the current row.
    text: String,
    /// The end of each field in `text`, after a leading 0.
    ends: Vec<usize>,
}

/// The properties of a product, decided before any text is written.
struct Product {
    id: [char; 10],
    line: &'static Line,
    brand: &'static str,
    series: &'static str,
    /// Prices after and before the discount, in paise (hundredths of a rupee).
    prices: [u64; 2],
    /// In tenths of a star.
    rating: u64,
    reviews: u64,
    /// Per shown review, whether it is positive.
    moods: Vec<bool>,
}

impl Generator {
    /// A stream that starts at row 0.
    pub fn new(seed: u64) -> Self {
        let mut draw = Draw::new(seed);
        let key = draw.0.next_u64();
        let mut pool = String::new();
        pool.extend((0..1 << 16).map(|_| char::from(draw.pick(BASE36))));
        let repeat = |line: &'static Line| std::iter::repeat_n(line, line.weight);
        Self {
            key,
            row: 0,
            wheel: LINES.iter().flat_map(repeat).collect(),
            pool,
            draw,
            text: String::new(),
            ends: Vec::new(),
        }
    }

    /// Advances to the next row and returns its fields in the order of [`COLUMNS`].
    pub fn next_row(&mut self) -> [&str; 16] {
        // A random generator per row, so that rows are independent of the number of earlier draws.
        self.draw = Draw::new(self.key ^ self.row);
        self.text.clear();
        self.ends.clear();
        self.ends.push(0);

        let product = self.decide();
        self.text.extend(product.id);
        self.end_field("");
        self.name(&product);
        self.end_field(product.line.category);
        self.numbers(&product);
        self.about(&product);
        self.reviewers(&product);
        self.reviews(&product);
        self.links(&product);

        self.row += 1;
        std::array::from_fn(|i| &self.text[self.ends[i]..self.ends[i + 1]])
    }

    fn decide(&mut self) -> Product {
        let draw = &mut self.draw;
        let line = draw.pick(&self.wheel);
        // Except for the most expensive goods, some are sold cheaper under an unknown brand.
        let bargain = line.price < 10_000 && draw.one_in(5);
        let segment = if bargain { &BARGAIN } else { line.segment };

        // 0.6 to 1.4 times the usual price, rarely twice or four times that.
        let mut rupees = line.price * (600 + draw.below(800)) / if bargain { 1_500 } else { 1_000 };
        for _ in 0..2 {
            rupees <<= u64::from(draw.one_in(8));
        }
        let mut paid = 100 * shop_price(rupees);
        if draw.one_in(80) {
            paid -= draw.pick(&[1, 25, 50, 95]);
        }
        let [low, middling] = segment.discounts;
        let discount = match draw.below(100) {
            band if band < low && draw.one_in(25) => 0,
            band if band < low => 2 + draw.dice(2, 16),
            band if band < low + middling => 32 + draw.dice(2, 14),
            _ if draw.one_in(15) => 84 + draw.below(10),
            _ => 56 + draw.dice(2, 15),
        };
        let listed = paid.max(100 * shop_price(paid / (100 - discount)));

        // Lower powers of two are more likely: a heavy-tailed distribution.
        let [first, powers] = segment.reviews;
        let least = 1 << (first + draw.below(powers).min(draw.below(powers)));
        let reviews = least + draw.below(least.min(MOST_REVIEWS - least));
        // With few ratings, any average is possible.
        let [worst, sides] = segment.rating;
        let usual = worst + draw.dice(3, sides);
        let odd = reviews < 32 && draw.one_in(6);
        let rating = if odd { 20 + draw.below(31) } else { usual };
        let moods = (0..VOICES.min(reviews)).map(|_| draw.below(100) + 50 < 3 * rating).collect();
        Product {
            id: product_id(self.key, self.row),
            line,
            brand: draw.pick(segment.brands),
            series: draw.pick(SERIES),
            prices: [paid, listed],
            rating,
            reviews,
            moods,
        }
    }

    fn name(&mut self, product: &Product) {
        let (line, brand, series) = (product.line, product.brand, product.series);
        self.push(&[brand, " ", series, " ", line.noun, ", "]);
        self.say(line.options);
        let start = self.draw.index(FEATURES.len());
        for i in start..start + 2 + self.draw.index(3) {
            self.push(&[", ", FEATURES[i % FEATURES.len()]]);
        }
        self.push(&[" ("]);
        self.say(COLOURS);
        self.end_field(")");
    }

    /// The five numeric fields, formatted as text.
    fn numbers(&mut self, product: &Product) {
        let [paid, listed] = product.prices;
        for paise in product.prices {
            self.push(&["₹"]);
            self.grouped(paise / 100);
            if paise % 100 > 0 {
                self.text.extend(['.', digit(paise / 10), digit(paise)]);
            }
            self.end_field("");
        }
        // Rounded to the nearest percent.
        self.grouped((200 * (listed - paid) + listed) / (2 * listed));
        self.end_field("%");
        let stars = [digit(product.rating / 10), '.', digit(product.rating)];
        if self.draw.one_in(700) {
            self.end_field("|");
        } else {
            self.text.extend(stars);
            self.end_field("");
        }
        if !self.draw.one_in(500) {
            self.grouped(product.reviews);
        }
        self.end_field("");
    }

    /// The seller's description: bullet points separated by `|`.
    fn about(&mut self, product: &Product) {
        let (line, brand) = (product.line, product.brand);
        let start = self.draw.index(POINTS);
        // These steps have no common divisor with the number of points, so no point repeats.
        let step = self.draw.pick(&[1, 2, 4]);
        for i in 0..5 + self.draw.index(4) {
            self.push(&[line.points[(start + i * step) % POINTS], "|"]);
        }
        self.push(&[brand, " ", line.noun, ": "]);
        self.say(PROMISES);
        self.end_field("");
    }

    /// The reviewers: their ids, their names, and the ids of the reviews.
    fn reviewers(&mut self, product: &Product) {
        self.each(product, |this, _| this.code("A", [13, 14]));
        self.each(product, |this, _| {
            this.say(FIRST_NAMES);
            if !this.draw.one_in(3) {
                this.push(&[" "]);
                this.say(LAST_NAMES);
            }
        });
        self.each(product, |this, _| this.code("R", [6, 7]));
    }

    fn reviews(&mut self, product: &Product) {
        let (newlines, emoji) = (self.draw.one_in(20), self.draw.one_in(16));
        self.each(product, |this, happy| this.say(TITLES[usize::from(happy)]));
        self.each(product, |this, happy| {
            this.say(OPINIONS[usize::from(happy)]);
            if this.draw.one_in(3) {
                this.push(&[" Bought this ", product.line.noun, " for "]);
                this.say(PEOPLE);
            }
            let most = if this.draw.one_in(50) { 50 } else { 5 };
            for _ in 0..this.draw.below(most) {
                let newline = newlines && this.draw.one_in(3);
                this.push(&[if newline { "\n" } else { " " }]);
                this.say(DETAILS);
            }
            if emoji && this.draw.one_in(3) {
                this.push(&[" "]);
                this.say(EMOJI);
            }
            if this.draw.one_in(24) {
                this.code(" https://images.example.com/reviews/", [5, 6]);
                this.push(&["_SY88.jpg"]);
            }
        });
    }

    fn links(&mut self, product: &Product) {
        let (line, brand, series) = (product.line, product.brand, product.series);
        self.code("https://images.example.com/catalogue/WEBP/I/", [5, 6]);
        self.end_field("_SX300_SY300_QL70_.jpg");
        self.push(&["https://www.example.com/", brand, "-", series]);
        for word in line.noun.split(' ') {
            self.push(&["-", word]);
        }
        self.push(&["/dp/"]);
        self.text.extend(product.id);
        self.code("/ref=sr_1_1?qid=", [5, 5]);
        self.end_field("");
    }

    /// Writes an item for each review, separated by commas, as one field. Items that contain commas make the field ambiguous,
    /// as in real data.
    fn each(&mut self, product: &Product, item: impl Fn(&mut Self, bool)) {
        for (i, &happy) in product.moods.iter().enumerate() {
            self.push(&[if i > 0 { "," } else { "" }]);
            item(self, happy);
        }
        self.end_field("");
    }

    /// Writes a prefix and two random runs of letters and digits.
    fn code(&mut self, prefix: &str, lengths: [usize; 2]) {
        self.push(&[prefix]);
        for length in lengths {
            let at = self.draw.index(self.pool.len() - length);
            self.text.push_str(&self.pool[at..at + length]);
        }
    }

    /// Writes a number with commas: one in three times as `139,900`, else in Indian grouping, `1,39,900`.
    fn grouped(&mut self, number: u64) {
        let western = self.draw.one_in(3);
        let step = if western { 3 } else { 2 };
        for place in (0..=number.checked_ilog10().unwrap_or(0)).rev() {
            self.text.push(digit(number / 10u64.pow(place)));
            if place >= 3 && (place - 3) % step == 0 {
                self.text.push(',');
            }
        }
    }

    fn say(&mut self, phrases: &[&str]) {
        self.text.push_str(self.draw.pick(phrases));
    }

    fn push(&mut self, parts: &[&str]) {
        parts.iter().for_each(|part| self.text.push_str(part));
    }

    fn end_field(&mut self, last: &str) {
        self.text.push_str(last);
        self.ends.push(self.text.len());
    }
}

/// The last digit of a number.
fn digit(number: u64) -> char {
    char::from(b'0' + (number % 10) as u8)
}

/// The next typical shop price in rupees: one that ends in 9, 49, 99 or 990.
fn shop_price(rupees: u64) -> u64 {
    let (step, less) = match rupees {
        ..500 => (10, 1),
        500..5_000 => (50, 1),
        5_000..20_000 => (100, 1),
        _ => (1_000, 10),
    };
    (rupees / step + 1) * step - less
}

/// `B0` and eight digits of base 36. A Feistel network maps rows to distinct ids among all 36⁸.
fn product_id(key: u64, row: u64) -> [char; 10] {
    let (mut left, mut right) = (row / HALF_ID % HALF_ID, row % HALF_ID);
    for round in 0..4 {
        let mixed = (right ^ key.rotate_left(16 * round)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (left, right) = (right, (left + (mixed >> 32)) % HALF_ID);
    }
    let mut rest = left * HALF_ID + right;
    let mut id = ['B', '0', '0', '0', '0', '0', '0', '0', '0', '0'];
    for place in &mut id[2..] {
        *place = char::from(BASE36[(rest % 36) as usize]);
        rest /= 36;
    }
    id
}

/// A random generator with integer arithmetic only.
struct Draw(Xoshiro256PlusPlus);

impl Draw {
    fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// A number from 0 to `n - 1`, for an `n` of at most 2³².
    fn below(&mut self, n: u64) -> u64 {
        ((self.0.next_u64() >> 32) * n) >> 32
    }

    fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// The sum of `count` numbers from 0 to `sides - 1`, which is approximately normal.
    fn dice(&mut self, count: u64, sides: u64) -> u64 {
        (0..count).map(|_| self.below(sides)).sum()
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.index(items.len())]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn table(rows: usize, seed: u64) -> Vec<[String; 16]> {
        let mut generator = Generator::new(seed);
        let mut next = |_| generator.next_row().map(str::to_owned);
        (0..rows).map(&mut next).collect()
    }

    fn csv_text(rows: &[[String; 16]]) -> Vec<u8> {
        let mut out = Vec::new();
        csv_header(&mut out);
        for row in rows {
            csv_row(&row.each_ref().map(String::as_str), &mut out);
        }
        out
    }

    #[test]
    fn same_seed_same_bytes() {
        let fnv = |hash: u64, &b: &u8| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        let text = csv_text(&table(1_000, 42));
        let hash = text.iter().fold(0xcbf2_9ce4_8422_2325, fnv);
        // After an intended change, regenerate data/products.csv.
        assert_eq!(hash, 0xff9d_b3a3_4433_e2e8, "now {hash:#x}");
        assert_ne!(table(9, 42), table(9, 43));
    }

    #[test]
    fn fewer_rows_are_the_first_of_more_and_ids_are_unique() {
        assert_eq!(table(300, 7)[..100], table(100, 7));
        let ids: HashSet<_> = (0..300_000).map(|row| product_id(5, row)).collect();
        assert_eq!(ids.len(), 300_000);
    }

    #[test]
    fn csv_and_json_read_back_as_they_were() {
        let mut rows = table(500, 3);
        rows[7] = std::array::from_fn(|i| "\"a\\\u{1}\n,é👍\r \t\"\"".chars().skip(i).collect());
        let text = csv_text(&rows);
        let mut reader = csv::Reader::from_reader(&text[..]);
        assert_eq!(reader.headers().unwrap(), &COLUMNS[..]);
        let mut records = reader.records();
        for row in &rows {
            assert_eq!(records.next().unwrap().unwrap(), row[..]);
            let mut json = Vec::new();
            ndjson_row(&COLUMNS, &row.each_ref().map(String::as_str), &mut json);
            assert_eq!(json.iter().position(|&b| b == b'\n'), Some(json.len() - 1));
            let object: serde_json::Value = serde_json::from_slice(&json).unwrap();
            assert_eq!(COLUMNS.map(|name| object[name].as_str().unwrap()), *row);
        }
        assert!(records.next().is_none());
    }

    #[test]
    fn numbers_are_consistent_and_all_irregularities_occur() {
        let rows = table(1_465, 42);
        let number = |text: &str| -> f64 { text.replace(['₹', ',', '%'], "").parse().unwrap() };
        for row in &rows {
            let [paid, listed, percent] = [3, 4, 5].map(|i| number(&row[i]));
            assert!((percent - 100.0 * (1.0 - paid / listed)).abs() <= 0.5 + 1e-9);
            assert!(paid > 0.0 && (0.0..=94.0).contains(&percent));
            assert!(row[6] == "|" || (2.0..=5.0).contains(&number(&row[6])));
            assert!(row[7].is_empty() || (2.0..430_000.0).contains(&number(&row[7])));
        }
        let tops: HashSet<_> = rows.iter().map(|row| row[2].split('|').next()).collect();
        assert!(tops.len() >= 8);
        let count = |i: usize, test: &dyn Fn(&str) -> bool| rows.iter().filter(|row| test(&row[i])).count();
        assert!(count(6, &|text| text == "|") >= 1);
        assert!(count(7, &|text| text.is_empty()) >= 2);
        for i in [4, 7] {
            // From 1,00,000 on, the position of the first comma distinguishes the two groupings.
            let comma = |text: &str| text.trim_start_matches('₹').find(',');
            let western = |text: &str| comma(text) == Some(3);
            let indian = |text: &str| text.matches(',').count() == 2 && !western(text);
            assert!(count(i, &western) >= 1 && count(i, &indian) >= 1);
        }
        let messes = [(1, "\""), (1, ","), (3, "."), (8, "|"), (13, "\""), (13, "\n"), (13, "👍")];
        for (i, mess) in messes {
            assert!(count(i, &|text| text.contains(mess)) >= 5, "{mess:?}");
        }
    }
}
