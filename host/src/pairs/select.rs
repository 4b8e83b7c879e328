//! Pairs by name.

use super::ALL;
use crate::harness::Pair;
use crate::harness::wording::{meant, near};

/// The target that means every pair.
const ALL_TARGETS: &str = "all";

/// A name that is no pair's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`TARGETS` must be `all` or names that `host list` shows, got `{got}`{}", meant(.near))]
pub struct UnknownTarget {
    /// What was asked for.
    pub got: String,
    /// Names like it, the likest first.
    pub near: Vec<&'static str>,
}

/// The pairs that `targets` name, each once, in that order; every one for `all`, or nothing.
///
/// # Errors
/// A name that is none's.
pub fn select(targets: &[String]) -> Result<Vec<&'static Pair>, UnknownTarget> {
    if targets.is_empty() {
        return Ok(ALL.iter().collect());
    }
    let mut selected: Vec<&'static Pair> = Vec::new();
    for target in targets {
        let meant = |pair: &&Pair| target == ALL_TARGETS || target == pair.name;
        if !ALL.iter().any(|pair| meant(&pair)) {
            let near = near(target, ALL.iter().map(|pair| pair.name));
            return Err(UnknownTarget { got: target.clone(), near });
        }
        for pair in ALL.iter().filter(meant) {
            if selected.iter().all(|other| other.name != pair.name) {
                selected.push(pair);
            }
        }
    }
    Ok(selected)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn selected(targets: &[&str]) -> Result<Vec<&'static str>, String> {
        let targets: Vec<String> = targets.iter().map(|&target| target.to_owned()).collect();
        let selected = select(&targets).map_err(|error| error.to_string())?;
        Ok(selected.iter().map(|pair| pair.name).collect())
    }

    #[test]
    fn nothing_and_all_mean_all_and_each_comes_once() {
        let all: Vec<_> = ALL.iter().map(|pair| pair.name).collect();
        assert_eq!(selected(&[]).unwrap(), all);
        assert_eq!(selected(&["all"]).unwrap(), all);
        assert_eq!(selected(&["paged_attention", "paged_attention"]).unwrap(), ["paged_attention"]);
        let named_first = selected(&["gemm", "all"]).unwrap();
        assert_eq!((named_first.len(), named_first[0]), (all.len(), "gemm"));
    }

    #[test]
    fn an_unknown_target_is_refused_with_the_near_names() {
        let error = selected(&["gemm", "paged_atention"]).unwrap_err();
        assert_eq!(
            error,
            "`TARGETS` must be `all` or names that `host list` shows, got `paged_atention`; \
             did you mean `paged_attention` or `paged_prefill`?"
        );
        assert!(!selected(&["zzz"]).unwrap_err().contains("did you mean"));
    }

    #[test]
    fn every_name_is_one_pairs() {
        let names: HashSet<&str> = ALL.iter().map(|pair| pair.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(!names.contains(ALL_TARGETS));
    }
}
