//! Files as memory.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::{Advice, Mmap};

/// A file, read as memory: the system brings in what is touched, and drops it when memory is short.
pub struct MappedFile {
    bytes: Mmap,
}

impl MappedFile {
    /// Maps a whole file, of which no byte may change meanwhile: a file that somebody truncates ends
    /// the program at the next access.
    ///
    /// # Errors
    /// A file that cannot be opened or mapped, as an empty one.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is private to this process and read only; that nobody else writes to the
        // file is what callers are told. A truncated file raises a signal, and no wrong reference.
        let bytes = unsafe { Mmap::map(&file) }?;
        // Advice alone: a system that does not take it reads as well.
        let _ = bytes.advise(Advice::Sequential);
        Ok(Self { bytes })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}
