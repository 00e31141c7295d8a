//! Kinds of text files, determined by their names.

use std::path::Path;

/// Supported kinds, for messages.
pub(in crate::data) const KNOWN_KINDS: &str = "`.txt`, `.text`, `.md`, `.jsonl`, `.ndjson`, `.json` (each also with `.gz`, `.zst` or `.zstd`) or `.parquet`";

/// Format and compression of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::data) struct FileKind {
    pub(in crate::data) format: Format,
    pub(in crate::data) compression: Compression,
}

/// Format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::data) enum Format {
    /// Plain text.
    Plain,
    /// One JSON record per line.
    JsonLines,
    /// As `JsonLines`, or one array, or records over several lines.
    Json,
    /// A Parquet file.
    Parquet,
}

/// Compression of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::data) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Returns the kind of a file; `None` if its name is not recognized.
pub(in crate::data) fn file_kind(path: &Path) -> Option<FileKind> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    let compressed_suffixes = [
        (".gz", Compression::Gzip),
        (".zst", Compression::Zstd),
        (".zstd", Compression::Zstd),
    ];
    let (name, compression) = compressed_suffixes
        .iter()
        .find_map(|&(suffix, compression)| Some((name.strip_suffix(suffix)?, compression)))
        .unwrap_or((&name, Compression::None));
    let format = match name
        .rsplit_once('.')
        .filter(|(stem, _)| !stem.is_empty())?
        .1
    {
        "txt" | "text" | "md" => Format::Plain,
        "jsonl" | "ndjson" => Format::JsonLines,
        "json" => Format::Json,
        // Parquet compresses its pages, not the file.
        "parquet" if compression == Compression::None => Format::Parquet,
        _ => return None,
    };
    Some(FileKind {
        format,
        compression,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_from_file_name() {
        let kind =
            |name: &str| file_kind(Path::new(name)).map(|kind| (kind.format, kind.compression));
        assert_eq!(kind("a.TXT"), Some((Format::Plain, Compression::None)));
        assert_eq!(
            kind("b/a.md.zstd"),
            Some((Format::Plain, Compression::Zstd))
        );
        assert_eq!(kind("a.json.gz"), Some((Format::Json, Compression::Gzip)));
        assert_eq!(
            kind("a.ndjson.zst"),
            Some((Format::JsonLines, Compression::Zstd))
        );
        assert_eq!(
            kind("a.parquet"),
            Some((Format::Parquet, Compression::None))
        );
        for name in ["a.parquet.gz", "a.csv", ".txt", "a.gz", "txt", ".jsonl.gz"] {
            assert_eq!(kind(name), None, "{name}");
        }
    }
}
