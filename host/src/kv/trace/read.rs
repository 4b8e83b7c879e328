//! The trace reader: one request at a time, every problem with its line and field.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead};

use serde_json::{Map, Value};

use super::{PREFIX_BLOCK_TOKENS, TraceRequest};

/// A field of a trace line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceField {
    /// `timestamp`
    Timestamp,
    /// `input_length`
    InputLength,
    /// `output_length`
    OutputLength,
    /// `hash_ids`
    HashIds,
}

impl TraceField {
    fn name(self) -> &'static str {
        match self {
            Self::Timestamp => "timestamp",
            Self::InputLength => "input_length",
            Self::OutputLength => "output_length",
            Self::HashIds => "hash_ids",
        }
    }
}

impl fmt::Display for TraceField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "field '{}'", self.name())
    }
}

/// What is wrong with a line of a trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceProblem {
    /// The file could not be read on.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Not one JSON value.
    #[error("broken JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A JSON value of another kind.
    #[error("a JSON object is needed, got {0}")]
    NotAnObject(String),
    /// A field is not there.
    #[error("{0} is missing")]
    Missing(TraceField),
    /// A field has the wrong type or range.
    #[error("{field}: {needed} is needed, got {got}")]
    Value {
        /// The field.
        field: TraceField,
        /// What it may hold.
        needed: &'static str,
        /// What it holds.
        got: String,
    },
    /// Prompt and output together are longer than a sequence can be.
    #[error(
        "field 'input_length' + field 'output_length': at most {} tokens, got {total}",
        i32::MAX
    )]
    TooLong {
        /// Tokens of both.
        total: u64,
    },
    /// A line that is earlier than the line before.
    #[error("field 'timestamp': goes back from {previous} to {got} ms")]
    TimeGoesBack {
        /// Of the line before, ms.
        previous: u64,
        /// Of this line, ms.
        got: u64,
    },
    /// Not one id per 512 tokens of prompt.
    #[error(
        "field 'hash_ids': {needed} ids are needed for {input_length} tokens in blocks of {PREFIX_BLOCK_TOKENS}, got {got}"
    )]
    HashIdCount {
        /// Prompt tokens.
        input_length: u32,
        /// Ids needed.
        needed: usize,
        /// Ids there.
        got: usize,
    },
    /// An id that followed something else earlier, so that it does not stand for a whole prefix.
    #[error(
        "field 'hash_ids': id {id} at index {index} was first seen after another prefix (line {first_line}, index {first_index}); ids must stand for the whole prefix"
    )]
    BrokenChain {
        /// The id.
        id: u64,
        /// Its index in this line.
        index: usize,
        /// The line that had it first.
        first_line: u64,
        /// Its index in that line.
        first_index: usize,
    },
}

/// A line of a trace that is no request.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct TraceError {
    /// Counted from 1.
    pub line: u64,
    /// What is wrong with it.
    #[source]
    pub problem: TraceProblem,
}

/// Where an id was seen first.
struct FirstSeen {
    parent: Option<u64>,
    index: usize,
    line: u64,
}

/// Reads a trace line by line; blank lines are skipped. After an error it ends.
pub struct TraceReader<R> {
    input: R,
    line: u64,
    text: String,
    previous_ms: u64,
    first_seen: HashMap<u64, FirstSeen>,
    failed: bool,
}

impl<R: BufRead> TraceReader<R> {
    /// A reader at the start of a trace.
    pub fn new(input: R) -> Self {
        Self {
            input,
            line: 0,
            text: String::new(),
            previous_ms: 0,
            first_seen: HashMap::new(),
            failed: false,
        }
    }

    fn next_request(&mut self) -> Result<Option<TraceRequest>, TraceProblem> {
        loop {
            self.text.clear();
            self.line += 1;
            if self.input.read_line(&mut self.text)? == 0 {
                return Ok(None);
            }
            if !self.text.trim().is_empty() {
                return self.parse_line().map(Some);
            }
        }
    }

    fn parse_line(&mut self) -> Result<TraceRequest, TraceProblem> {
        let fields = match serde_json::from_str(&self.text)? {
            Value::Object(fields) => fields,
            other => return Err(TraceProblem::NotAnObject(brief(&other))),
        };
        let timestamp_ms = timestamp(&fields)?;
        let input_length = length(&fields, TraceField::InputLength)?;
        let output_length = length(&fields, TraceField::OutputLength)?;
        let total = u64::from(input_length) + u64::from(output_length);
        if total > i32::MAX as u64 {
            return Err(TraceProblem::TooLong { total });
        }
        let hash_ids = hash_ids(&fields)?;
        let needed = input_length.div_ceil(PREFIX_BLOCK_TOKENS) as usize;
        if hash_ids.len() != needed {
            return Err(TraceProblem::HashIdCount { input_length, needed, got: hash_ids.len() });
        }
        if timestamp_ms < self.previous_ms {
            return Err(TraceProblem::TimeGoesBack {
                previous: self.previous_ms,
                got: timestamp_ms,
            });
        }
        self.previous_ms = timestamp_ms;
        self.check_chain(&hash_ids)?;
        Ok(TraceRequest { timestamp_ms, input_length, output_length, hash_ids })
    }

    fn check_chain(&mut self, hash_ids: &[u64]) -> Result<(), TraceProblem> {
        let mut parent = None;
        for (index, &id) in hash_ids.iter().enumerate() {
            let first =
                self.first_seen.entry(id).or_insert(FirstSeen { parent, index, line: self.line });
            if first.parent != parent || first.index != index {
                return Err(TraceProblem::BrokenChain {
                    id,
                    index,
                    first_line: first.line,
                    first_index: first.index,
                });
            }
            parent = Some(id);
        }
        Ok(())
    }
}

impl<R: BufRead> Iterator for TraceReader<R> {
    type Item = Result<TraceRequest, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let request =
            self.next_request().map_err(|problem| TraceError { line: self.line, problem });
        self.failed = request.is_err();
        request.transpose()
    }
}

fn field(fields: &Map<String, Value>, field: TraceField) -> Result<&Value, TraceProblem> {
    fields.get(field.name()).ok_or(TraceProblem::Missing(field))
}

fn timestamp(fields: &Map<String, Value>) -> Result<u64, TraceProblem> {
    let value = field(fields, TraceField::Timestamp)?;
    value.as_u64().ok_or_else(|| TraceProblem::Value {
        field: TraceField::Timestamp,
        needed: "a whole number of ms from 0",
        got: brief(value),
    })
}

fn length(fields: &Map<String, Value>, name: TraceField) -> Result<u32, TraceProblem> {
    let value = field(fields, name)?;
    value
        .as_u64()
        .and_then(|tokens| u32::try_from(tokens).ok())
        .filter(|&tokens| tokens > 0)
        .ok_or_else(|| TraceProblem::Value {
            field: name,
            needed: "a whole number of tokens from 1",
            got: brief(value),
        })
}

fn hash_ids(fields: &Map<String, Value>) -> Result<Vec<u64>, TraceProblem> {
    let value = field(fields, TraceField::HashIds)?;
    let problem =
        |needed, got| TraceProblem::Value { field: TraceField::HashIds, needed, got: brief(got) };
    let ids = value.as_array().ok_or_else(|| problem("an array of ids", value))?;
    ids.iter()
        .map(|id| id.as_u64().ok_or_else(|| problem("an array of whole numbers from 0", id)))
        .collect()
}

/// A value short enough for a message.
fn brief(value: &Value) -> String {
    let mut text = value.to_string();
    if text.chars().count() > 40 {
        text = text.chars().take(40).collect::<String>() + "…";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<TraceRequest>, String> {
        TraceReader::new(text.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())
    }

    fn line(timestamp: &str, input: &str, output: &str, ids: &str) -> String {
        format!(
            "{{\"timestamp\": {timestamp}, \"input_length\": {input}, \
             \"output_length\": {output}, \"hash_ids\": {ids}}}\n"
        )
    }

    #[test]
    fn reads_what_is_written() {
        let request = TraceRequest {
            timestamp_ms: 27482,
            input_length: 6955,
            output_length: 52,
            hash_ids: (46..60).collect(),
        };
        let text = serde_json::to_string(&request).unwrap() + "\n\n";
        assert_eq!(read(&text), Ok(vec![request]));
        assert_eq!(read(""), Ok(vec![]));
    }

    #[test]
    fn says_line_and_field() {
        let good = line("5", "600", "1", "[0, 1]");
        let cases = [
            ("{\"timestamp\": 1,", "broken JSON"),
            ("[1]", "a JSON object is needed, got [1]"),
            ("{\"timestamp\": 9}", "field 'input_length' is missing"),
            (
                &line("-1", "1", "1", "[0]"),
                "field 'timestamp': a whole number of ms from 0 is needed, got -1",
            ),
            (
                &line("9", "-1", "1", "[0]"),
                "field 'input_length': a whole number of tokens from 1 is needed, got -1",
            ),
            (
                &line("9", "0", "1", "[]"),
                "field 'input_length': a whole number of tokens from 1 is needed, got 0",
            ),
            (
                &line("9", "1", "1.5", "[0]"),
                "field 'output_length': a whole number of tokens from 1 is needed, got 1.5",
            ),
            (
                &line("9", "1", "\"1\"", "[0]"),
                "field 'output_length': a whole number of tokens from 1 is needed, got \"1\"",
            ),
            (&line("9", "4294967295", "1", "[0]"), "at most 2147483647 tokens, got 4294967296"),
            (
                &line("9", "513", "1", "[0]"),
                "field 'hash_ids': 2 ids are needed for 513 tokens in blocks of 512, got 1",
            ),
            (&line("9", "1", "1", "7"), "field 'hash_ids': an array of ids is needed, got 7"),
            (
                &line("9", "1", "1", "[-7]"),
                "field 'hash_ids': an array of whole numbers from 0 is needed, got -7",
            ),
            (&line("4", "1", "1", "[0]"), "field 'timestamp': goes back from 5 to 4 ms"),
            (
                &line("9", "1", "1", "[1]"),
                "id 1 at index 0 was first seen after another prefix (line 1, index 1)",
            ),
            (
                &line("9", "1000", "1", "[3, 1]"),
                "id 1 at index 1 was first seen after another prefix (line 1, index 1)",
            ),
            (
                &line("9", "1000", "1", "[3, 3]"),
                "id 3 at index 1 was first seen after another prefix (line 3, index 0)",
            ),
        ];
        for (bad, expected) in cases {
            let message = read(&format!("{good}\n{bad}")).unwrap_err();
            assert!(message.starts_with("line 3: "), "{message}");
            assert!(message.contains(expected), "{message}\ndoes not say\n{expected}");
        }
    }

    #[test]
    fn ends_after_an_error() {
        let text = "{\n".to_string() + &line("0", "1", "1", "[0]");
        let mut reader = TraceReader::new(text.as_bytes());
        assert!(reader.next().unwrap().is_err());
        assert!(reader.next().is_none());
    }

    #[test]
    fn shows_long_values_in_brief() {
        let long = format!("{:?}", vec![7; 100]);
        let message = read(&line("9", &long, "1", "[0]")).unwrap_err();
        assert!(message.ends_with('…'), "{message}");
    }
}
