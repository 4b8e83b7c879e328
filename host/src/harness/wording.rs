//! How errors are said: causes once, and names that may have been meant.

/// How alike two names are that one may have been meant for the other: 1 is the same.
const NEAR: f64 = 0.75;

/// Most names that help.
const MOST: usize = 5;

/// Those of `names` that are like `got`, the likest first.
pub fn near<'a>(got: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let alike = |name: &str| strsim::jaro_winkler(got, name);
    let mut near: Vec<&str> = names.into_iter().filter(|name| alike(name) > NEAR).collect();
    near.sort_by(|a, b| alike(b).total_cmp(&alike(a)));
    near.truncate(MOST);
    near
}

/// The end of a refusal: a question, if there is a name that may have been meant.
pub fn meant(near: &[&str]) -> String {
    match near {
        [] => String::new(),
        near => format!("; did you mean `{}`?", near.join("` or `")),
    }
}

/// An error and what caused it, each told once: messages often hold their cause's.
pub fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !line.contains(&cause) {
            line += &format!(": {cause}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_cause_that_a_message_holds_is_told_once() {
        let cause = anyhow!("no such file");
        assert_eq!(in_one_line(&cause.context("trace x: no such file")), "trace x: no such file");
        let cause = anyhow!("no such file");
        let advice = "trace x: no such file; `--trace` names one";
        assert_eq!(in_one_line(&cause.context(advice)), advice);
        let cause = anyhow!("no such file");
        assert_eq!(in_one_line(&cause.context("trace x")), "trace x: no such file");
    }
}
