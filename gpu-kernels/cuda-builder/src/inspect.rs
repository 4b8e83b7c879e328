//! What a PTX module holds: its kernels, their parameters and launch bounds, and how many
//! instructions of each kind that the threads of a warp or block execute together.
//!
//! Those counts matter because a compiler pass that copies or drops a barrier leaves a kernel that
//! still assembles, and hangs or errs on the GPU only.

use std::collections::BTreeMap;
use std::fmt;

/// Instruction prefixes, and the name under which each kind is counted.
const COLLECTIVES: &[(&str, &str)] = &[
    ("activemask", "activemask"),
    ("bar.arrive", "bar.arrive"),
    ("bar.cta.arrive", "bar.arrive"),
    ("barrier.arrive", "bar.arrive"),
    ("barrier.cta.arrive", "bar.arrive"),
    ("bar.red", "bar.red"),
    ("bar.cta.red", "bar.red"),
    ("barrier.red", "bar.red"),
    ("barrier.cta.red", "bar.red"),
    ("bar.sync", "bar.sync"),
    ("bar.cta.sync", "bar.sync"),
    ("barrier.sync", "bar.sync"),
    ("barrier.cta.sync", "bar.sync"),
    ("bar.warp.sync", "bar.warp.sync"),
    ("barrier.cluster.arrive", "barrier.cluster.arrive"),
    ("barrier.cluster.wait", "barrier.cluster.wait"),
    ("elect.sync", "elect.sync"),
    ("ldmatrix.sync", "ldmatrix.sync"),
    ("match.", "match.sync"),
    ("mma.sync", "mma.sync"),
    ("redux.sync", "redux.sync"),
    ("shfl.sync", "shfl.sync"),
    ("vote.sync", "vote.sync"),
    ("wgmma.mma_async", "wgmma.mma_async"),
];

/// A PTX module, as far as the gate looks at it. Its `Display` is what snapshots hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// The architecture of the `.target` directive.
    pub target: String,
    /// Kernels, and functions that were not inlined into them, by name.
    pub functions: Vec<Function>,
    /// Lines that declare something the module does not define.
    pub externs: Vec<String>,
}

/// A kernel or a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Kernels are entries; other functions are called by them.
    pub is_entry: bool,
    /// The name that profilers show.
    pub name: String,
    /// The type of each parameter, such as `u64 ptr`, `f32` or `b8[128] align 64`.
    pub parameters: Vec<String>,
    /// Directives between parameters and body, such as `.reqntid 256, 1, 1`.
    pub bounds: Vec<String>,
    /// How many instructions of each kind the body has.
    pub collectives: BTreeMap<&'static str, usize>,
}

/// Reads a module as the compiler writes it: a body's braces stand alone in the first column.
pub fn inspect(ptx: &str) -> Module {
    let mut module = Module::default();
    let mut lines = ptx.lines().map(without_comment);
    while let Some(line) = lines.next() {
        let text = line.trim();
        if let Some(target) = text.strip_prefix(".target ") {
            module.target = target.to_owned();
        } else if text.starts_with(".extern") {
            module.externs.push(text.to_owned());
        } else if text.contains(".entry ") || text.contains(".func ") {
            let mut header = vec![text];
            let rest = lines.by_ref().map(str::trim);
            let is_definition = !text.ends_with(';')
                && rest.take_while(|line| *line != "{").all(|line| {
                    header.push(line);
                    !line.ends_with(';')
                });
            if is_definition {
                let body = lines.by_ref().take_while(|line| *line != "}");
                module.functions.push(function(&header.join("\n"), body));
            }
        }
    }
    module.functions.sort_by(|a, b| a.name.cmp(&b.name));
    module
}

fn function<'a>(header: &str, body: impl Iterator<Item = &'a str>) -> Function {
    let is_entry = header.contains(".entry ");
    let keyword = if is_entry { ".entry " } else { ".func " };
    let after_keyword = header.split_once(keyword).map_or("", |(_, right)| right.trim_start());
    let signature = if after_keyword.starts_with('(') {
        // A returned value comes before the name.
        after_keyword.split_once(')').map_or("", |(_, right)| right)
    } else {
        after_keyword
    };
    let (name, rest) = signature.split_once('(').unwrap_or((signature, ""));
    let (parameters, bounds) = rest.rsplit_once(')').unwrap_or((rest, ""));
    let mut collectives = BTreeMap::new();
    for instruction in body.flat_map(|line| line.split(';')) {
        if let Some(kind) = collective(instruction) {
            *collectives.entry(kind).or_default() += 1;
        }
    }
    Function {
        is_entry,
        name: name.trim().to_owned(),
        parameters: parameters.split(',').filter_map(parameter).collect(),
        bounds: bounds
            .split('\n')
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect(),
        collectives,
    }
}

/// `.param .align 64 .b8 name[128]` is `b8[128] align 64`; the alignment behind a pointer, which
/// the compiler states differently from release to release, is left out.
fn parameter(declaration: &str) -> Option<String> {
    let mut words = declaration.split_whitespace();
    words.next().filter(|word| *word == ".param")?;
    let mut alignment = "";
    let mut kind = String::new();
    while let Some(word) = words.next() {
        match word {
            ".align" => alignment = words.next().unwrap_or_default(),
            ".ptr" => kind += " ptr",
            _ if word.starts_with('.') => {
                kind += &word.replace('.', if kind.is_empty() { "" } else { " " })
            }
            name => {
                if let Some((_, extent)) = name.split_once('[') {
                    kind += &format!("[{extent} align {alignment}");
                }
            }
        }
    }
    Some(kind)
}

fn collective(instruction: &str) -> Option<&'static str> {
    let mut words = instruction
        .split(|c: char| c.is_whitespace() || c == '{' || c == '}')
        .filter(|word| !word.is_empty());
    let mnemonic = words.find(|word| !word.starts_with('@') && !word.ends_with(':'))?;
    let (_, kind) = COLLECTIVES.iter().find(|(prefix, _)| mnemonic.starts_with(prefix))?;
    Some(kind)
}

fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code).trim_end()
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "target {}", self.target)?;
        self.functions.iter().try_for_each(|function| function.fmt(f))
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_entry { "kernel" } else { "function" };
        writeln!(f, "\n{kind} {}({})", self.name, self.parameters.join(", "))?;
        if !self.bounds.is_empty() {
            writeln!(f, "    {}", self.bounds.join(" "))?;
        }
        if !self.collectives.is_empty() {
            let counts = self.collectives.iter().map(|(kind, n)| format!("{kind} {n}"));
            writeln!(f, "    {}", counts.collect::<Vec<_>>().join(", "))?;
        }
        Ok(())
    }
}
