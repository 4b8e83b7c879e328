//! Names that may have been meant.

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
