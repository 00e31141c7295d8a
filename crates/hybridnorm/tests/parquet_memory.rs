//! Reading a Parquet file takes the memory of a page, not that of the file.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use hybridnorm::data::{SourceOptions, Sources};
use hybridnorm::memory;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

#[test]
#[cfg_attr(
    not(target_os = "linux"),
    ignore = "peak memory is measured on Linux only"
)]
fn memory_is_bounded_by_the_page_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.parquet");
    let rows = 3000;
    let text = "some words ".repeat(6000);
    write(&path, rows, &text);
    memory::reset_peak();
    let before = memory::peak_bytes().unwrap();
    let mut documents = 0;
    let input = [path.to_str().unwrap().to_owned()];
    let sources = Sources::resolve(&input, &SourceOptions::default()).unwrap();
    for document in sources.documents() {
        assert_eq!(document.unwrap().text.len(), text.len());
        documents += 1;
    }
    let peak = memory::peak_bytes().unwrap().saturating_sub(before);
    assert_eq!(documents, rows);
    let unpacked = (rows * text.len()) as u64;
    assert!(
        peak < 64 << 20,
        "peak {} MiB for {} MiB of uncompressed text",
        peak >> 20,
        unpacked >> 20
    );
}

/// Writes `rows` rows of the same text.
fn write(path: &Path, rows: usize, text: &str) {
    let schema = parse_message_type("message rows { required binary text (UTF8); }").unwrap();
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap()));
    let file = fs::File::create(path).unwrap();
    let properties = Arc::new(properties.build());
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), properties).unwrap();
    let values = vec![ByteArray::from(text); 100];
    for _ in 0..rows / 100 {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, None, None)
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}
