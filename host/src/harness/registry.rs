//! The pairs that there are, by name.

use super::near::{meant, near};
use super::pair::Pair;
use crate::pairs;

/// The target that means all of them.
const ALL: &str = "all";

/// Some pairs, each with a name of its own.
#[derive(Clone)]
pub struct Registry {
    pairs: Vec<&'static dyn Pair>,
}

/// The pairs of this build.
pub fn registry() -> Registry {
    Registry::new(pairs::ALL.to_vec())
}

/// A name that is no pair's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`TARGETS` must be `all` or names that `host list` shows, got `{got}`{}", meant(.near))]
pub struct UnknownTarget {
    /// What was asked for.
    pub got: String,
    /// Names like it, the likest first.
    pub near: Vec<&'static str>,
}

impl Registry {
    /// A registry of these.
    ///
    /// # Panics
    /// If two have the same name, or one is called `all`.
    pub fn new(pairs: Vec<&'static dyn Pair>) -> Self {
        for (i, pair) in pairs.iter().enumerate() {
            let is_taken = pairs[..i].iter().any(|other| other.name() == pair.name());
            assert!(!is_taken && pair.name() != ALL, "two targets called {}", pair.name());
        }
        Self { pairs }
    }

    /// All pairs.
    pub fn pairs(&self) -> &[&'static dyn Pair] {
        &self.pairs
    }

    /// The pairs that `targets` name, each once, in that order; all of them for `all`, or nothing.
    ///
    /// # Errors
    /// A name that is none's.
    pub fn select(&self, targets: &[String]) -> Result<Vec<&'static dyn Pair>, UnknownTarget> {
        let mut selected: Vec<&'static dyn Pair> = Vec::new();
        let mut add = |pair: &'static dyn Pair| {
            if selected.iter().all(|other| other.name() != pair.name()) {
                selected.push(pair);
            }
        };
        for target in targets {
            match self.pairs.iter().find(|pair| pair.name() == target) {
                Some(&pair) => add(pair),
                None if target == ALL => self.pairs.iter().for_each(|&pair| add(pair)),
                None => return Err(self.unknown(target)),
            }
        }
        Ok(if targets.is_empty() { self.pairs.clone() } else { selected })
    }

    fn unknown(&self, got: &str) -> UnknownTarget {
        let near = near(got, self.pairs.iter().map(|pair| pair.name()));
        UnknownTarget { got: got.to_owned(), near }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(targets: &[&str]) -> Result<Vec<&'static str>, String> {
        let targets: Vec<String> = targets.iter().map(|&target| target.to_owned()).collect();
        let selected = registry().select(&targets).map_err(|error| error.to_string())?;
        Ok(selected.iter().map(|pair| pair.name()).collect())
    }

    #[test]
    fn nothing_and_all_mean_all_and_each_comes_once() {
        let all: Vec<_> = registry().pairs().iter().map(|pair| pair.name()).collect();
        assert_eq!(select(&[]).unwrap(), all);
        assert_eq!(select(&["all"]).unwrap(), all);
        assert_eq!(select(&["paged_attention", "paged_attention"]).unwrap(), ["paged_attention"]);
        let named_first = select(&["paged_attention", "all"]).unwrap();
        assert_eq!((named_first.len(), named_first[0]), (all.len(), "paged_attention"));
    }

    #[test]
    fn an_unknown_target_is_refused_with_the_near_names() {
        let error = select(&["paged_atention"]).unwrap_err();
        assert_eq!(
            error,
            "`TARGETS` must be `all` or names that `host list` shows, got `paged_atention`; \
             did you mean `paged_attention` or `paged_prefill`?"
        );
        assert!(!select(&["zzz"]).unwrap_err().contains("did you mean"));
    }

    #[test]
    #[should_panic(expected = "two targets called paged_attention")]
    fn a_name_is_taken_once() {
        let pairs = registry().pairs().to_vec();
        Registry::new([pairs.clone(), pairs].concat());
    }
}
