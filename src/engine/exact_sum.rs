//! Exact sums of doubles: a small superaccumulator.
//!
//! Source: R. M. Neal, "Fast exact summation using small and large superaccumulators" (2015). A sum is a fixed-point number
//! in units of 2^-1074, held in signed 64-bit chunks of 32 bits each. Adding touches at most three chunks, and carries are
//! propagated only once in 2^30 additions. The result does not depend on the order of additions, and is rounded once. Unlike
//! Neal's, it keeps only the chunks in use: a query has one sum per group, and values of a similar size need three or four of
//! the 67 chunks. Sums can be merged and stored, which aggregation in several partitions needs.

use smallvec::SmallVec;

/// Bits of a chunk's value, apart from pending carries.
const CHUNK_BITS: usize = 32;
/// Additions after which carries are propagated: chunks stay below 2^62.
const MOST_ADDS: u32 = 1 << 30;
/// Bits of a double's significand, with the implicit one.
const SIGNIFICAND: usize = 53;

/// A sum of doubles.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExactSum {
    /// Chunks from number `base` on; chunk i counts units of 2^(32 i - 1074).
    chunks: SmallVec<[i64; 4]>,
    base: u8,
    /// Additions since the last propagation of carries.
    adds: u32,
    /// Numbers of NaN, infinity and minus infinity among the values.
    special: Option<Box<[u64; 3]>>,
}

impl ExactSum {
    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        self.apply(value, false);
    }

    /// Takes a value out that was added before.
    pub fn subtract(&mut self, value: f64) {
        self.apply(value, true);
    }

    fn apply(&mut self, value: f64, takes_out: bool) {
        if !value.is_finite() {
            let kind = if value.is_nan() { 0 } else { 1 + usize::from(value < 0.0) };
            let count = &mut self.special.get_or_insert_default()[kind];
            *count = if takes_out { count.saturating_sub(1) } else { *count + 1 };
            return;
        }
        let bits = value.to_bits();
        let (exponent, fraction) = ((bits >> 52) & 0x7ff, bits & ((1 << 52) - 1));
        let significand = if exponent == 0 { fraction } else { fraction | 1 << 52 };
        if significand == 0 {
            return;
        }
        let shift = exponent.max(1) as usize - 1;
        let wide = u128::from(significand) << (shift % CHUNK_BITS);
        let negative = value.is_sign_negative() != takes_out;
        for piece in 0..3 {
            let part = (wide >> (CHUNK_BITS * piece)) as u32;
            if part != 0 {
                let part = i64::from(part);
                *self.chunk(shift / CHUNK_BITS + piece) += if negative { -part } else { part };
            }
        }
        self.count(1);
    }

    /// The chunk with this number, which is made if necessary.
    fn chunk(&mut self, number: usize) -> &mut i64 {
        if self.chunks.is_empty() {
            self.base = number as u8;
        }
        let base = usize::from(self.base);
        if number < base {
            self.chunks.insert_many(0, std::iter::repeat_n(0, base - number));
            self.base = number as u8;
        }
        let at = number - usize::from(self.base);
        if at >= self.chunks.len() {
            self.chunks.resize(at + 1, 0);
        }
        &mut self.chunks[at]
    }

    fn count(&mut self, adds: u32) {
        self.adds += adds;
        if self.adds >= MOST_ADDS {
            self.carry();
        }
    }

    /// Propagates carries: all chunks but the last are then from 0 to 2^32 - 1, and the last one has the sign.
    fn carry(&mut self) {
        let mut at = 0;
        while at < self.chunks.len() {
            let chunk = self.chunks[at];
            let is_last = at + 1 == self.chunks.len();
            if is_last && chunk.unsigned_abs() < 1 << CHUNK_BITS {
                break;
            }
            let carried = chunk >> CHUNK_BITS;
            self.chunks[at] = chunk & 0xffff_ffff;
            match self.chunks.get_mut(at + 1) {
                Some(next) => *next += carried,
                None => self.chunks.push(carried),
            }
            at += 1;
        }
        self.adds = 1;
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: &Self) {
        if let Some(other) = &other.special {
            let special = self.special.get_or_insert_default();
            special.iter_mut().zip(other.iter()).for_each(|(count, other)| *count += other);
        }
        for (i, chunk) in other.chunks.iter().enumerate().filter(|(_, chunk)| **chunk != 0) {
            *self.chunk(usize::from(other.base) + i) += chunk;
        }
        self.count(other.adds);
    }

    /// The sum, rounded once to the nearest double, ties to even.
    pub fn sum(&self) -> f64 {
        self.short_sum().unwrap_or_else(|| self.quotient(1))
    }

    /// The sum of a few chunks as a 128-bit integer, whose conversion rounds once; `None` if it might not fit, or if a power of two
    /// could not scale it exactly.
    fn short_sum(&self) -> Option<f64> {
        let base = usize::from(self.base);
        let fits = match *self.chunks {
            [_, _, _, top] => top.unsigned_abs() < 1 << 29,
            ref chunks => chunks.len() < 4,
        };
        if !fits || self.special.is_some() || !(2..=60).contains(&base) {
            return None;
        }
        // Chunks stay below 2^62, so the lower three are below 2^127 together with a top below 2^29.
        let whole = self.chunks.iter().rev().fold(0_i128, |whole, chunk| (whole << CHUNK_BITS) + i128::from(*chunk));
        // 2^(32 base - 1074), a normal double, as is any multiple of it by an integer below 2^128.
        let unit = f64::from_bits(((base * CHUNK_BITS + 1023 - 1074) as u64) << 52);
        Some(whole as f64 * unit)
    }

    /// The sum divided by a number, rounded once. NaN if the number is 0.
    pub fn quotient(&self, divisor: u64) -> f64 {
        if let Some([nan, infinity, minus]) = self.special.as_deref().copied() {
            match (nan > 0, infinity > 0, minus > 0) {
                (true, ..) | (_, true, true) => return f64::NAN,
                (_, true, false) => return f64::INFINITY,
                (_, false, true) => return f64::NEG_INFINITY,
                _ => {}
            }
        }
        if divisor == 0 {
            return f64::NAN;
        }
        let (negative, digits) = self.magnitude();
        let magnitude = divided(&digits, divisor);
        if negative { -magnitude } else { magnitude }
    }

    /// The sign and the digits to base 2^32 in units of 2^-1074, the lowest first.
    fn magnitude(&self) -> (bool, Vec<u32>) {
        let mut sum = self.clone();
        sum.carry();
        let negative = sum.chunks.last().is_some_and(|chunk| *chunk < 0);
        if negative {
            sum.chunks.iter_mut().for_each(|chunk| *chunk = -*chunk);
            sum.carry();
        }
        let mut digits = vec![0; usize::from(sum.base)];
        digits.extend(sum.chunks.iter().map(|chunk| *chunk as u32));
        (negative, digits)
    }

    /// Bytes on the heap.
    pub fn heap_size(&self) -> usize {
        let chunks = if self.chunks.spilled() { self.chunks.capacity() * size_of::<i64>() } else { 0 };
        chunks + self.special.as_ref().map_or(0, |_| size_of::<[u64; 3]>())
    }

    /// Appends the sum as bytes: `base`, 1 if there are special values, `adds`, the numbers of special values, chunks.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend([self.base, u8::from(self.special.is_some())]);
        bytes.extend(self.adds.to_le_bytes());
        self.special.iter().flat_map(|special| special.iter()).for_each(|count| bytes.extend(count.to_le_bytes()));
        self.chunks.iter().for_each(|chunk| bytes.extend(chunk.to_le_bytes()));
    }

    /// The sum of these bytes; `None` if they are none.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (&[base, flag], rest) = bytes.split_first_chunk::<2>()?;
        let (adds, mut rest) = rest.split_first_chunk::<4>()?;
        let mut special = None;
        if flag == 1 {
            let mut counts = [0; 3];
            for count in &mut counts {
                let (bytes, after) = rest.split_first_chunk()?;
                (*count, rest) = (u64::from_le_bytes(*bytes), after);
            }
            special = Some(Box::new(counts));
        }
        let (chunks, []) = rest.as_chunks::<8>() else { return None };
        let chunks = chunks.iter().map(|chunk| i64::from_le_bytes(*chunk)).collect();
        Some(Self { chunks, base, adds: u32::from_le_bytes(*adds), special })
    }
}

/// A number of units of 2^-1074, divided and rounded to the nearest double.
fn divided(digits: &[u32], divisor: u64) -> f64 {
    // One digit of fraction is enough to round: what is below it only breaks ties.
    let (mut quotient, mut remainder) = (vec![0_u32; digits.len() + 1], 0_u128);
    for (at, digit) in quotient.iter_mut().enumerate().rev() {
        let next = if at == 0 { 0 } else { digits[at - 1] };
        let value = remainder << CHUNK_BITS | u128::from(next);
        // Less than 2^32, because the remainder is less than the divisor.
        *digit = (value / u128::from(divisor)) as u32;
        remainder = value % u128::from(divisor);
    }
    rounded(&quotient, CHUNK_BITS, remainder != 0)
}

/// The nearest double of digits whose lowest `fraction` bits are below 2^-1074. `more` tells whether there is anything below.
fn rounded(digits: &[u32], fraction: usize, more: bool) -> f64 {
    let Some(top) = digits.iter().rposition(|digit| *digit != 0) else { return 0.0 };
    let length = (top + 1) * CHUNK_BITS - digits[top].leading_zeros() as usize;
    // Bits below are cut off: a double has 53 bits, and none below 2^-1074.
    let cut = length.saturating_sub(SIGNIFICAND).max(fraction);
    let bit = |at: usize| digits[at / CHUNK_BITS] >> (at % CHUNK_BITS) & 1 == 1;
    let mut kept = 0_u64;
    for at in (cut..length).rev() {
        kept = kept << 1 | u64::from(bit(at));
    }
    let half = bit(cut - 1);
    let below = more || (0..cut - 1).any(bit);
    kept += u64::from(half && (below || kept & 1 == 1));
    // The implicit bit, and a carry of rounding, increase the exponent by one each.
    let bits = (((cut - fraction) as u64) << 52) + kept;
    f64::from_bits(bits.min(f64::INFINITY.to_bits()))
}

#[cfg(test)]
mod tests {
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{RngCore, SeedableRng};

    use super::*;

    fn sum(values: &[f64]) -> f64 {
        let mut sum = ExactSum::default();
        values.iter().for_each(|value| sum.add(*value));
        sum.sum()
    }

    #[test]
    fn known_sums_are_exact() {
        assert_eq!(sum(&[]), 0.0);
        assert_eq!(sum(&[1.0, 2.0, 3.0]), 6.0);
        assert_eq!(sum(&[1e308, 1.0, -1e308]), 1.0);
        assert_eq!(sum(&[1e308, 1e308, -1e308, -1e308, 5e-324]), 5e-324);
        assert_eq!(sum(&[f64::MAX, f64::MAX]), f64::INFINITY);
        assert_eq!(sum(&[-f64::MAX, -f64::MAX]), f64::NEG_INFINITY);
        assert_eq!(sum(&[0.1; 10]), 1.0);
        assert_eq!(sum(&[f64::MIN_POSITIVE, -5e-324]), f64::from_bits(f64::MIN_POSITIVE.to_bits() - 1));
        // Ties go to even, and any bit below breaks them.
        let (one, half_ulp) = (1.0_f64, f64::EPSILON / 2.0);
        assert_eq!(sum(&[one, half_ulp]), one);
        assert_eq!(sum(&[one + f64::EPSILON, half_ulp]), one + 2.0 * f64::EPSILON);
        assert_eq!(sum(&[one, half_ulp, 5e-324]), one + f64::EPSILON);
        assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan() && sum(&[f64::NAN, 1.0]).is_nan());
        assert_eq!(sum(&[f64::INFINITY, -1.0]), f64::INFINITY);
    }

    /// Any double, and those of a few magnitudes, so that sums cancel.
    fn any(rng: &mut Xoshiro256PlusPlus) -> f64 {
        let value = f64::from_bits(rng.next_u64());
        match rng.next_u32() % 4 {
            0 if value.is_finite() => value,
            1 => f64::from_bits(rng.next_u64() & 0x800f_ffff_ffff_ffff),
            _ => (rng.next_u64() as i64 >> (rng.next_u32() % 60)) as f64 / 1024.0,
        }
    }

    /// The order of additions, the split into parts and the way through bytes change no bit; values can be taken out again.
    #[test]
    fn parts_and_order_do_not_matter() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
        for _ in 0..2000 {
            let mut values: Vec<f64> = (0..rng.next_u32() % 60).map(|_| any(&mut rng)).collect();
            let whole = sum(&values);
            for at in (1..values.len()).rev() {
                values.swap(at, rng.next_u64() as usize % (at + 1));
            }
            let mut parts = ExactSum::default();
            for part in values.chunks(1 + rng.next_u64() as usize % 9) {
                let mut some = ExactSum::default();
                part.iter().for_each(|value| some.add(*value));
                if rng.next_u32().is_multiple_of(2) {
                    some.carry();
                }
                let mut bytes = Vec::new();
                some.write(&mut bytes);
                parts.merge(&ExactSum::read(&bytes).unwrap());
            }
            assert_eq!(parts.sum().to_bits(), whole.to_bits(), "{values:?}");
            assert_eq!(parts.sum().to_bits(), parts.quotient(1).to_bits(), "{values:?}");
            // With its own negation nothing is left, and nothing is left of what was taken out.
            let mut none = parts.clone();
            values.iter().for_each(|value| none.add(-value));
            assert_eq!(none.sum(), 0.0);
            values.iter().for_each(|value| parts.subtract(*value));
            assert_eq!(parts.sum(), 0.0);
        }
    }

    /// Compared with integers of 128 bits, whose conversion rounds once.
    #[test]
    fn sums_and_quotients_of_integers_are_rounded_once() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(8);
        for _ in 0..5000 {
            let values: Vec<i64> =
                (0..1 + rng.next_u32() % 20).map(|_| (rng.next_u64() as i64) >> (rng.next_u32() % 63)).collect();
            let values: Vec<f64> = values.into_iter().map(|value| value as f64).collect();
            let exact: i128 = values.iter().map(|value| *value as i128).sum();
            assert_eq!(sum(&values), exact as f64);
            let mut all = ExactSum::default();
            values.iter().for_each(|value| all.add(*value));
            // A quotient is the nearest double: the exact distance of its neighbours is not smaller.
            let n = 1 + rng.next_u64() % 1000;
            let quotient = all.quotient(n);
            if quotient.abs() < 2f64.powi(60) && quotient.abs() > 1e-3 {
                // In units of 2^-64.
                let off = |value: f64| ((value * 2f64.powi(62)) as i128 * i128::from(n) - (exact << 62)).unsigned_abs();
                let (up, down) = (f64::from_bits(quotient.to_bits() + 1), f64::from_bits(quotient.to_bits() - 1));
                if exact.unsigned_abs() < 1 << 60 && quotient.abs() < 2f64.powi(50) {
                    assert!(off(quotient) <= off(up) && off(quotient) <= off(down), "{exact} / {n}: {quotient}");
                }
            }
        }
        let mut all = ExactSum::default();
        all.add(5e-324);
        // Half of the smallest double is a tie, and goes to zero; three quarters of it round up.
        assert_eq!(all.quotient(2), 0.0);
        (0..2).for_each(|_| all.add(5e-324));
        assert_eq!(all.quotient(4), 5e-324);
        assert!(all.quotient(0).is_nan());
    }

    #[test]
    fn damaged_bytes_are_no_sum() {
        assert_eq!(ExactSum::read(&[]), None);
        assert_eq!(ExactSum::read(&[0, 0, 0, 0, 0, 0, 1]), None);
        assert_eq!(ExactSum::read(&[0, 1, 0, 0, 0, 0, 1]), None);
    }
}
