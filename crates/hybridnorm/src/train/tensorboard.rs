//! TensorBoard event files.
//!
//! An event file is a sequence of TFRecords, each of which is one `tensorboard.Event` in the wire format of Protocol
//! Buffers. TensorFlow defines records in `tensorflow/core/lib/io/record_writer.h`, messages in
//! `tensorflow/core/util/event.proto` and `tensorflow/core/framework/summary.proto`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::error::{Error, Result};
use crate::files;

/// Prefix of TensorFlow's file names; TensorBoard reads every file with `tfevents` in its name.
const PREFIX: &str = "events.out.tfevents.";

/// File version that makes readers detect restarts by [`START`] and not by steps that are out of order.
const VERSION: &str = "brain.Event:2";

/// `SessionLog.SessionStatus.START`.
const START: i32 = 1;

/// Writer that appends scalars to an event file.
///
/// Every record is written with one call, so that a kill truncates at most the last one. TensorBoard reads the
/// records before it and continues with the next file of the folder.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Creates a file in `dir`, and `dir` itself if its parent exists. TensorBoard shows all files of a folder as
    /// one run.
    ///
    /// `resumed_at` is the number of completed steps of a resumed run: points of later steps in the older files are
    /// no longer shown, since those steps will be run again. It is `None` for a new run.
    ///
    /// # Errors
    /// If the folder or the file cannot be created, or the first records cannot be written.
    pub fn create(dir: &Path, resumed_at: Option<u64>) -> Result<Self> {
        files::create_new_dir(dir)?;
        let seconds = seconds_of_next(dir)?;
        let path = dir.join(format!("{PREFIX}{seconds:010}.{}", std::process::id()));
        let file = File::create_new(&path).map_err(Error::io(&path))?;
        let mut events = Self { path, file };
        events.write(0, What::FileVersion(VERSION.into()))?;
        // Readers discard data of this step and later ones. A new run needs the event as well: TensorBoard does not
        // treat the first one as a restart.
        let first_step = resumed_at.map_or(0, |done| done + 1);
        events.write(first_step, What::SessionLog(SessionLog { status: START }))?;
        Ok(events)
    }

    /// Appends scalars of one step. They are stored as `f32`; non-finite values are kept.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        let value = values
            .into_iter()
            .map(|(tag, value)| Value {
                tag: tag.into(),
                simple_value: Some(value as f32),
            })
            .collect();
        self.write(step, What::Summary(Summary { value }))
    }

    /// Flushes all records to disk.
    ///
    /// # Errors
    /// If they cannot be flushed.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path))
    }

    fn write(&mut self, step: u64, what: What) -> Result<()> {
        let event = Event {
            wall_time: since_epoch().as_secs_f64(),
            step: step as i64,
            what: Some(what),
        };
        self.file
            .write_all(&record(&event.encode_to_vec()))
            .map_err(Error::io(&self.path))
    }
}

/// Removes the event files of a folder.
///
/// # Errors
/// If the folder cannot be listed or a file cannot be removed.
pub fn remove(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        if path.file_name().is_some_and(is_events) {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

/// True if the name is that of an event file.
pub(super) fn is_events(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
}

/// Returns the timestamp in the name of the next file: now, or right after that of the newest file if the clock is
/// earlier, since TensorBoard reads files in the order of their names.
fn seconds_of_next(dir: &Path) -> Result<u64> {
    let mut seconds = since_epoch().as_secs();
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let name = entry.map_err(Error::io(dir))?.file_name();
        if let Some(older) = seconds_of(&name.to_string_lossy()) {
            seconds = seconds.max(older.saturating_add(1));
        }
    }
    Ok(seconds)
}

fn seconds_of(name: &str) -> Option<u64> {
    let (seconds, _) = name.strip_prefix(PREFIX)?.split_once('.')?;
    seconds.parse().ok()
}

fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Encodes a TFRecord: the payload's length, its checksum, the payload and its checksum, little-endian.
fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    [
        &length[..],
        &masked_crc(&length).to_le_bytes(),
        payload,
        &masked_crc(payload).to_le_bytes(),
    ]
    .concat()
}

/// Returns the CRC-32C, rotated and offset by a constant, as in TFRecords
/// (`tensorflow/core/lib/hash/crc32c.h`).
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// `tensorboard.Event`, reduced to the fields written here.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// `tensorboard.Summary.Value`.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    /// Member of a oneof in the format, so that a zero must be written too.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes the events of a file up to its end or to a truncated record.
    fn events(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some((payload, rest)) = split_record(bytes) {
            events.push(Event::decode(payload).unwrap());
            bytes = rest;
        }
        events
    }

    fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let (length, rest) = bytes.split_first_chunk::<8>()?;
        let (length_crc, rest) = rest.split_first_chunk::<4>()?;
        assert_eq!(u32::from_le_bytes(*length_crc), masked_crc(length));
        let (payload, rest) = rest.split_at_checked(u64::from_le_bytes(*length) as usize)?;
        let (payload_crc, rest) = rest.split_first_chunk::<4>()?;
        assert_eq!(u32::from_le_bytes(*payload_crc), masked_crc(payload));
        Some((payload, rest))
    }

    /// Decodes the events of a file, without their times.
    fn decode_without_times(bytes: &[u8]) -> Vec<(i64, What)> {
        events(bytes)
            .into_iter()
            .map(|event| (event.step, event.what.unwrap()))
            .collect()
    }

    fn version() -> (i64, What) {
        (0, What::FileVersion("brain.Event:2".into()))
    }

    fn start(step: i64) -> (i64, What) {
        (step, What::SessionLog(SessionLog { status: 1 }))
    }

    fn summary(step: i64, values: &[(&str, f32)]) -> (i64, What) {
        let value = |&(tag, value): &(&str, f32)| Value {
            tag: tag.into(),
            simple_value: Some(value),
        };
        let value = values.iter().map(value).collect();
        (step, What::Summary(Summary { value }))
    }

    #[test]
    fn checksums_are_those_of_tensorflow() {
        // A `file_version` event that TensorFlow wrote; from TensorBoard's `masked_crc.rs`.
        assert_eq!(masked_crc(b"\x1a\x11CRC test, one two"), 0x5794_d08a);
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn events_have_the_bytes_of_the_format() {
        let event = |step, what| {
            let event = Event {
                wall_time: 1.0,
                step,
                what: Some(what),
            };
            event.encode_to_vec()
        };
        let time = b"\x09\0\0\0\0\0\0\xf0\x3f";
        let (step, what) = summary(300, &[("a", 0.0)]);
        assert_eq!(
            event(step, what),
            [
                &time[..],
                b"\x10\xac\x02",
                b"\x2a\x0a\x0a\x08\x0a\x01a\x15\0\0\0\0"
            ]
            .concat()
        );
        let (step, what) = start(5);
        assert_eq!(
            event(step, what),
            [&time[..], b"\x10\x05", b"\x3a\x02\x08\x01"].concat()
        );
        let (step, what) = version();
        assert_eq!(
            event(step, what),
            [&time[..], b"\x1a\x0dbrain.Event:2"].concat()
        );
    }

    #[test]
    fn event_file_contains_version_start_and_scalars() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(&dir.path().join("new"), None).unwrap();
        file.scalars(1, [("loss", 2.5), ("lr", 0.0)]).unwrap();
        file.scalars(u64::from(u32::MAX) + 1, [("loss", f64::INFINITY)])
            .unwrap();
        let bytes = fs::read(&file.path).unwrap();
        assert_eq!(
            decode_without_times(&bytes),
            [
                version(),
                start(0),
                summary(1, &[("loss", 2.5), ("lr", 0.0)]),
                summary(1 << 32, &[("loss", f32::INFINITY)]),
            ]
        );
        let now = since_epoch().as_secs_f64();
        for event in events(&bytes) {
            assert!((now - 60.0..=now).contains(&event.wall_time));
        }
    }

    #[test]
    fn truncated_record_does_not_affect_others() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(dir.path(), None).unwrap();
        file.scalars(1, [("loss", 2.5)]).unwrap();
        let whole = fs::metadata(&file.path).unwrap().len() as usize;
        file.scalars(2, [("loss", 2.25)]).unwrap();
        let bytes = fs::read(&file.path).unwrap();
        for end in whole..bytes.len() {
            let kept = [version(), start(0), summary(1, &[("loss", 2.5)])];
            assert_eq!(decode_without_times(&bytes[..end]), kept);
        }
        assert_eq!(decode_without_times(&bytes).len(), 4);
    }

    #[test]
    fn event_file_of_a_resumed_run_is_read_last_and_starts_after_its_steps() {
        let dir = tempfile::tempdir().unwrap();
        let ahead = since_epoch().as_secs() + 1000;
        let older = dir.path().join(format!("{PREFIX}{ahead}.host.7.0"));
        fs::write(&older, b"").unwrap();
        let first = EventFile::create(dir.path(), Some(0)).unwrap();
        let second = EventFile::create(dir.path(), Some(20)).unwrap();
        assert!(older < first.path && first.path < second.path);
        let starts = [(first, 1), (second, 21)];
        for (file, step) in starts {
            let bytes = fs::read(&file.path).unwrap();
            assert_eq!(decode_without_times(&bytes), [version(), start(step)]);
        }
    }

    #[test]
    fn errors_name_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = EventFile::create(&file, None).unwrap_err();
        assert!(matches!(error, Error::Format { path, .. } if path == file));
    }
}
