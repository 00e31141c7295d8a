use std::fs;

use super::super::metrics::Metrics;
use super::*;

fn metrics(step: u64) -> Metrics {
    Metrics {
        step,
        loss: 2.5,
        grad_norm: 1.0,
        update_norm: 0.5,
        lr: 1e-3,
        tokens: 10 * step,
        tokens_per_second: 100.0,
        ..Metrics::default()
    }
}

fn line(step: u64) -> String {
    serde_json::to_string(&metrics(step)).unwrap() + "\n"
}

/// Creates a run directory whose metrics are these lines.
fn run(lines: &[&str]) -> tempfile::TempDir {
    let run = tempfile::tempdir().unwrap();
    fs::write(run.path().join(Metrics::FILE), lines.concat()).unwrap();
    run
}

fn steps(run: &Path) -> Vec<u64> {
    let records: Vec<Metrics> = read(run).unwrap();
    records.iter().map(|record| record.step).collect()
}

#[test]
fn reopening_drops_records_after_the_resume_step() {
    let run = tempfile::tempdir().unwrap();
    let mut file = RecordFile::open(run.path(), 0).unwrap();
    (1..=5).for_each(|step| file.append(&metrics(step)).unwrap());
    file.file.write_all(b"{\"step\": 6, \"lo").unwrap();
    drop(file);
    assert_eq!(read::<Metrics>(run.path()).unwrap().len(), 5);
    let mut file = RecordFile::open(run.path(), 3).unwrap();
    assert_eq!(steps(run.path()), [1, 2, 3]);
    file.append(&metrics(4)).unwrap();
    let records: Vec<Metrics> = read(run.path()).unwrap();
    assert_eq!(records, [1, 2, 3, 4].map(metrics));
}

#[test]
fn invalid_record_error_names_the_line() {
    let first = line(1);
    let run = run(&[&first, "{}\n"]);
    let error = read::<Metrics>(run.path()).unwrap_err();
    let found = error.to_string();
    assert!(
        found.contains("metrics.jsonl: line 2 is not a valid record"),
        "{found}"
    );
    let expected = first.len() as u64;
    assert!(matches!(error, Error::Corrupt { offset, .. } if offset == Some(expected)));
}

#[test]
fn trailing_zeros_are_ignored() {
    let zeros = "\0".repeat(5000);
    let (one, two) = (line(1), line(2));
    let run = run(&[&one, &two, &zeros]);
    assert_eq!(steps(run.path()), [1, 2]);
    let mut file = RecordFile::open(run.path(), 2).unwrap();
    file.append(&metrics(3)).unwrap();
    assert_eq!(steps(run.path()), [1, 2, 3]);
}

#[test]
fn corruption_is_an_error_only_before_the_resume_step() {
    let gap = "\0\0\0\n";
    let [one, two, three] = [1, 2, 3].map(line);
    let corrupt = run(&[&one, gap, &three]);
    RecordFile::<Metrics>::open(corrupt.path(), 1).unwrap();
    assert_eq!(steps(corrupt.path()), [1]);
    let corrupt = run(&[&one, gap, &two, &three]);
    let before = fs::read(corrupt.path().join(Metrics::FILE)).unwrap();
    let found = RecordFile::<Metrics>::open(corrupt.path(), 2).unwrap_err();
    assert!(
        found.to_string().contains("line 2 is not a valid record"),
        "{found}"
    );
    assert_eq!(
        fs::read(corrupt.path().join(Metrics::FILE)).unwrap(),
        before
    );
}

#[test]
fn last_record_of_a_repeated_step_counts() {
    let mut again = metrics(2);
    again.loss = 1.5;
    let again = serde_json::to_string(&again).unwrap() + "\n";
    let [one, two, three] = [1, 2, 3].map(line);
    let run = run(&[&one, &two, &three, &again, &three]);
    assert_eq!(steps(run.path()), [1, 2, 3]);
    assert_eq!(read::<Metrics>(run.path()).unwrap()[1].loss, 1.5);
    RecordFile::<Metrics>::open(run.path(), 3).unwrap();
    let text = fs::read_to_string(run.path().join(Metrics::FILE)).unwrap();
    assert_eq!(text, [one, again, three].concat());
}

#[test]
fn non_finite_numbers_round_trip_as_nan() {
    let run = tempfile::tempdir().unwrap();
    let mut file = RecordFile::open(run.path(), 0).unwrap();
    let mut odd = metrics(1);
    odd.tokens_per_second = f64::INFINITY;
    odd.loss = f64::NAN;
    odd.validation_loss = Some(f64::NAN);
    odd.objective = Some(f64::NEG_INFINITY);
    file.append(&odd).unwrap();
    let records: Vec<Metrics> = read(run.path()).unwrap();
    assert!(records[0].tokens_per_second.is_nan() && records[0].loss.is_nan());
    assert_eq!(
        (records[0].grad_norm, records[0].validation_loss),
        (1.0, None)
    );
    RecordFile::<Metrics>::open(run.path(), 1).unwrap();
    assert_eq!(steps(run.path()), [1]);
}

#[test]
fn overlong_line_is_an_error_before_it_is_loaded() {
    let run = tempfile::tempdir().unwrap();
    let path = run.path().join(Metrics::FILE);
    fs::write(&path, vec![b'x'; RECORD_LIMIT as usize + 1]).unwrap();
    for found in [
        read::<Metrics>(run.path()).unwrap_err(),
        RecordFile::<Metrics>::open(run.path(), 1).unwrap_err(),
    ] {
        assert!(
            found.to_string().contains("line 1 has more than"),
            "{found}"
        );
    }
}

#[cfg(unix)]
#[test]
fn pipe_is_an_error_without_blocking() {
    let run = tempfile::tempdir().unwrap();
    let path = run.path().join(Metrics::FILE);
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    let found = read::<Metrics>(run.path()).unwrap_err().to_string();
    assert!(found.contains("is a pipe"), "{found}");
    assert!(RecordFile::<Metrics>::open(run.path(), 1).is_err());
}

#[test]
fn missing_records_are_an_error() {
    for steps in [&[1, 2, 4, 5][..], &[1, 3, 4, 2], &[3, 5]] {
        let lines: Vec<String> = steps.iter().map(|&step| line(step)).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let run = run(&lines);
        let found = RecordFile::<Metrics>::open(run.path(), 5).unwrap_err();
        let found = found.to_string();
        assert!(
            found.contains("records between them are missing"),
            "{found}"
        );
        assert!(found.contains("metrics.jsonl: line "), "{found}");
    }
    let short = run(&[&line(1), &line(2)]);
    let found = RecordFile::<Metrics>::open(short.path(), 5).unwrap_err();
    assert!(found.to_string().contains("ends with step 2"), "{found}");
    // Records of steps that will be run again may be missing.
    let lines: Vec<String> = [1, 2, 4].iter().map(|&step| line(step)).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    RecordFile::<Metrics>::open(run(&lines).path(), 2).unwrap();
}
