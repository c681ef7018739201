//! A generator of orders: events about customers and products.
//!
//! Few customers order often and most order seldom; new ones come as the stream goes on. November and December are busier, some
//! orders are returned, and values are as untidy as those of the products. Row `i` depends on the seed and `i` only.

use super::Draw;

/// The fields of an order, in the order in which they are written. `amount` is in rupees (`1299.00`, `₹1,299`, or empty),
/// `status` is `ordered` or `returned`; a return repeats the order that it takes back.
pub const ORDER_COLUMNS: [&str; 8] =
    ["order_id", "customer_id", "product_id", "quantity", "unit_price", "amount", "status", "ordered_at"];

/// The time of the first order: 2025-01-01, in seconds since 1970.
const START: u64 = 1_735_689_600;
/// Seconds from one order to the next.
const STEP: u64 = 97;
const DAY: u64 = 86_400;
const PRODUCTS: u64 = 2_000;

/// A stream of orders.
pub struct Orders {
    key: u64,
    row: u64,
    text: [String; 8],
}

/// An order in numbers.
struct Order {
    row: u64,
    customer: u64,
    product: u64,
    quantity: u64,
    /// In paise (hundredths of a rupee).
    unit_price: u64,
    /// Seconds since 1970.
    at: u64,
}

impl Orders {
    /// A stream that follows from `seed`.
    pub fn new(seed: u64) -> Self {
        // Other rows than those of the products of the same seed.
        Self { key: seed ^ 0x6f72_6465_7273, row: 0, text: Default::default() }
    }

    /// The next order; its fields are in the order of [`ORDER_COLUMNS`].
    pub fn next_row(&mut self) -> [&str; 8] {
        let row = self.row;
        self.row += 1;
        let mut untidy = self.draw(row, 2);
        let (order, status) = match self.returns(row) {
            Some(earlier) => (Order { at: time(row, &mut untidy), ..self.order(earlier) }, "returned"),
            None => (self.order(row), "ordered"),
        };
        let customer = match untidy.below(60) {
            0 => format!("c{:07}", order.customer),
            1 => format!(" C{:07} ", order.customer),
            _ => format!("C{:07}", order.customer),
        };
        let total = order.quantity * order.unit_price;
        let amount = match untidy.below(200) {
            0 => String::new(),
            1..10 => format!("₹{}", grouped(total / 100)),
            10..30 => format!("{}.{:02}", grouped(total / 100), total % 100),
            _ => format!("{}.{:02}", total / 100, total % 100),
        };
        self.text = [
            format!("O{:09}", order.row),
            customer,
            format!("P{:05}", order.product),
            order.quantity.to_string(),
            format!("{}.{:02}", order.unit_price / 100, order.unit_price % 100),
            amount,
            status.to_owned(),
            date(order.at, untidy.one_in(100)),
        ];
        self.text.each_ref().map(String::as_str)
    }

    /// A generator of numbers for one purpose of a row.
    fn draw(&self, row: u64, purpose: u64) -> Draw {
        Draw::new(self.key ^ ((row << 2) | purpose))
    }

    /// The order that a row returns, if it is a return.
    fn returns(&self, row: u64) -> Option<u64> {
        let mut draw = self.draw(row, 1);
        if row < 50 || !draw.one_in(16) {
            return None;
        }
        let earlier = row - 1 - draw.below(row.min(5_000));
        // A return is not returned; the first orders are none.
        (0..=earlier).rev().find(|row| *row < 50 || !self.draw(*row, 1).one_in(16))
    }

    fn order(&self, row: u64) -> Order {
        let mut draw = self.draw(row, 0);
        // A tenth as many customers as orders so far. Half of the orders are spread evenly, the others by a cube.
        let customers = 20 + (row / 10).min(1 << 31);
        let part = draw.below(1 << 21);
        let share = if draw.one_in(2) { (part * part * part) >> 31 } else { draw.below(1 << 32) };
        let customer = (share * customers) >> 32;
        let part = draw.below(1 << 16);
        let product = ((part * part / (1 << 16)) * PRODUCTS) >> 16;
        let mut price = Draw::new(self.key ^ 0xffff_0000_0000_0000 ^ product);
        let unit_price = 4_900 + price.below(100) * (100 << price.below(7));
        let at = time(row, &mut draw);
        let (_, month, _) = civil(at / DAY);
        let mut quantity = 1 + if draw.one_in(4) { draw.below(4) } else { 0 };
        quantity += u64::from(month >= 11 && draw.one_in(2));
        // Some customers buy for a business.
        if Draw::new(self.key ^ 0xeeee_0000_0000_0000 ^ customer).one_in(20) {
            quantity *= 6;
        }
        Order { row, customer, product, quantity, unit_price, at }
    }
}

/// The time of a row: orders arrive up to an hour late.
fn time(row: u64, draw: &mut Draw) -> u64 {
    START + row * STEP - draw.below(3_600).min(row * STEP)
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A time as text, in ISO 8601 or with the day first.
fn date(at: u64, day_first: bool) -> String {
    let (year, month, day) = civil(at / DAY);
    let (hour, minute, second) = (at % DAY / 3_600, at % 3_600 / 60, at % 60);
    match day_first {
        true => format!("{day:02}/{month:02}/{year} {hour:02}:{minute:02}"),
        false => format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"),
    }
}

/// Year, month and day of a number of days since 1970 (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn rows(seed: u64, n: usize) -> Vec<[String; 8]> {
        let mut orders = Orders::new(seed);
        (0..n).map(|_| orders.next_row().map(str::to_owned)).collect()
    }

    #[test]
    fn same_seed_same_rows() {
        assert_eq!(rows(7, 2_000), rows(7, 2_000));
        assert_ne!(rows(7, 100), rows(8, 100));
        assert_eq!(rows(7, 2_000)[..100], rows(7, 100));
    }

    #[test]
    fn few_customers_order_often_and_some_orders_are_returned() {
        let rows = rows(42, 50_000);
        let mut orders: BTreeMap<String, u64> = BTreeMap::new();
        let mut placed = BTreeMap::new();
        let mut returned = 0;
        for row in &rows {
            *orders.entry(row[1].trim().to_uppercase()).or_default() += 1;
            if row[6] == "returned" {
                // It repeats an earlier order.
                let order: &[String; 8] = placed[&row[0]];
                assert_eq!((row[2].as_str(), row[3].as_str()), (order[2].as_str(), order[3].as_str()));
                returned += 1;
            } else {
                assert!(placed.insert(row[0].clone(), row).is_none());
            }
        }
        assert!((2_500..4_000).contains(&returned), "{returned}");
        let mut counts: Vec<u64> = orders.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        assert!(counts.len() > 3_500 && counts.len() < 5_100, "{}", counts.len());
        let (top, all): (u64, u64) = (counts[..counts.len() / 100].iter().sum(), counts.iter().sum());
        assert!(top * 100 / all > 8, "the top hundredth has {top} of {all}");
        let forms: BTreeSet<bool> = rows.iter().map(|row| row[5].contains(',')).collect();
        assert!(
            forms.len() == 2 && rows.iter().any(|row| row[5].is_empty()) && rows.iter().any(|row| row[7].contains('/'))
        );
        assert!(rows[0][7].starts_with("2025-01-01T"), "{}", rows[0][7]);
    }

    #[test]
    fn days_are_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_089), (2025, 1, 1));
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
