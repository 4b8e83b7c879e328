//! Text to tokens, and back as they come.

use std::path::Path;

use super::ModelError;

/// What turns text into tokens.
pub struct Tokenizer {
    kind: Kind,
}

enum Kind {
    /// `tokenizer.json`
    File(Box<tokenizers::Tokenizer>),
    /// A token a byte: for models without a folder.
    Bytes { vocab_size: u32 },
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a folder.
    ///
    /// # Errors
    /// A file that cannot be read, or is no tokenizer.
    pub fn from_folder(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| ModelError::file(&path, source))?;
        let tokenizer = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| ModelError::format(&path, error))?;
        Ok(Self { kind: Kind::File(Box::new(tokenizer)) })
    }

    /// A token a byte, for a vocabulary that has no meaning.
    pub fn bytes(vocab_size: u32) -> Self {
        Self { kind: Kind::Bytes { vocab_size } }
    }

    /// Tokens of a text, with those that the tokenizer puts in front.
    ///
    /// # Errors
    /// What the tokenizer says, in words.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        match &self.kind {
            Kind::File(tokenizer) => {
                let encoded = tokenizer.encode(text, true).map_err(|error| error.to_string())?;
                Ok(encoded.get_ids().to_vec())
            }
            Kind::Bytes { vocab_size } => {
                Ok(text.bytes().map(|byte| u32::from(byte) % vocab_size).collect())
            }
        }
    }

    /// The text of tokens, as they come.
    pub fn text_stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, tokens: Vec::new(), num_shown: 0, shown: String::new() }
    }
}

/// The text of tokens that come one after the other.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
    /// Tokens whose text was given out; they are decoded again as the context of the next.
    num_shown: usize,
    shown: String,
}

/// Tokens that the text of the next one may depend on.
const CONTEXT_TOKENS: usize = 8;

impl TextStream<'_> {
    /// What a token adds; nothing yet for one that ends within a character.
    ///
    /// # Errors
    /// What the tokenizer says, in words.
    pub fn push(&mut self, token: u32) -> Result<String, String> {
        let Kind::File(tokenizer) = &self.tokenizer.kind else {
            return Ok(format!(" {token}"));
        };
        let decode =
            |tokens: &[u32]| tokenizer.decode(tokens, true).map_err(|error| error.to_string());
        self.tokens.push(token);
        let text = decode(&self.tokens)?;
        if text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        let new = text.strip_prefix(&self.shown).unwrap_or_default().to_owned();
        self.num_shown = self.tokens.len();
        let first_kept = self.num_shown.saturating_sub(CONTEXT_TOKENS);
        self.tokens.drain(..first_kept);
        self.shown = decode(&self.tokens)?;
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> Tokenizer {
        let folder = Path::new("tests/checkpoints/llama");
        Tokenizer::from_folder(folder).unwrap()
    }

    #[test]
    fn text_comes_back_as_it_was_character_by_character() {
        let tokenizer = fixture();
        let text = "Zwölf Boxkämpfer, 漢字 and more than eight tokens";
        let tokens = tokenizer.encode(text).unwrap();
        assert_eq!(tokens.len(), text.len());
        let mut stream = tokenizer.text_stream();
        let pieces: Vec<String> =
            tokens.into_iter().map(|token| stream.push(token).unwrap()).collect();
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().any(String::is_empty), "a part of a character is not shown");
    }

    #[test]
    fn without_a_file_bytes_are_tokens() {
        let tokenizer = Tokenizer::bytes(100);
        assert_eq!(tokenizer.encode("A\u{e9}").unwrap(), [65, 0xc3 % 100, 0xa9 % 100]);
        assert_eq!(tokenizer.text_stream().push(65).unwrap(), " 65");
    }

    #[test]
    fn a_file_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Tokenizer::from_folder(folder.path()).is_err());
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        let refusal = Tokenizer::from_folder(folder.path()).err().unwrap().to_string();
        assert!(refusal.contains("tokenizer.json"), "{refusal}");
    }
}
