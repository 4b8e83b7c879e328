//! Numbers that arguments give, refused in words.

/// Reads whole numbers from `least` to `most`.
pub fn whole<T: TryFrom<u64>>(
    least: u64,
    most: u64,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync {
    move |text| {
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        let number = number.and_then(|number: u64| T::try_from(number).ok());
        number.ok_or_else(|| format!("must be a whole number from {least} to {most}"))
    }
}

/// Reads numbers above 0.
pub fn above_0(text: &str) -> Result<f64, &'static str> {
    let number = text.parse().ok().filter(|number: &f64| *number > 0.0 && number.is_finite());
    number.ok_or("must be a number above 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_held_to_their_range() {
        let rank = whole::<u32>(1, 64);
        assert_eq!([rank("1"), rank("64")], [Ok(1), Ok(64)]);
        for refused in ["0", "65", "-1", "1.5", "1e3", "99999999999999999999999", "one", ""] {
            assert_eq!(rank(refused).unwrap_err(), "must be a whole number from 1 to 64");
        }
        assert_eq!([above_0("0.5"), above_0("1e3")], [Ok(0.5), Ok(1000.0)]);
        for refused in ["0", "-1", "inf", "NaN", "1e400", "fast", ""] {
            assert_eq!(above_0(refused).unwrap_err(), "must be a number above 0");
        }
    }
}
