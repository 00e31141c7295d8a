//! Reading and checks of records.

use super::*;

#[test]
fn bit_flips_are_detected() {
    let fixture = Fixture::new();
    let record = record_of(fixture.run());
    fixture.folder.write_record(&record).unwrap();
    let path = fixture.folder.record_path(&record.id);
    let whole = fs::read(&path).unwrap();
    assert_eq!(fixture.read().unwrap(), std::slice::from_ref(&record));
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(parsed) = checksummed::parse::<RunRecord>(&bytes) {
            assert_eq!(parsed.content, record, "bit {bit}");
        }
    }
}

#[test]
fn records_of_earlier_versions_are_read_and_counted() {
    let fixture = Fixture::new();
    let [first, second] = [0, 1].map(|index| record_of(&fixture.study.runs[index]));
    fixture.folder.write_record(&first).unwrap();
    let path = fixture.folder.record_path(&second.id);
    fs::write(path, serde_json::to_vec(&second).unwrap()).unwrap();
    // Rejected if this version started the study.
    let found = fixture.read().unwrap_err().to_string();
    assert!(found.contains("has no checksum"), "{found}");
    fs::remove_file(fixture.folder.path().join(HISTORY)).unwrap();
    let read = fixture.folder.read(&fixture.study.runs).unwrap();
    assert_eq!(read.records, [first.clone(), second.clone()]);
    assert_eq!(read.without_checksum, std::slice::from_ref(&second.id));
    // From now on, all other records need a checksum.
    fixture.folder.write_study(&fixture.study).unwrap();
    let read = fixture.folder.read(&fixture.study.runs).unwrap();
    assert_eq!(read.without_checksum, [second.id]);
    let path = fixture.folder.record_path(&first.id);
    fs::write(path, serde_json::to_vec(&first).unwrap()).unwrap();
    assert!(fixture.read().is_err());
}

type Case = (RunRecord, &'static str);

fn changed(record: &RunRecord, change: &dyn Fn(&mut RunRecord)) -> RunRecord {
    let mut record = record.clone();
    change(&mut record);
    record
}

/// Asserts that each record is rejected with its message, although its checksum is valid.
fn assert_rejected(fixture: &Fixture, cases: &[Case]) {
    let id = &fixture.run().id;
    let path = fixture.folder.record_path(id);
    for (record, message) in cases {
        let (text, _) = checksummed::to_json_with_checksum(record, "").unwrap();
        fs::write(&path, text).unwrap();
        let found = fixture.read().unwrap_err().to_string();
        assert!(found.contains(message), "{message}: {found}");
        assert!(found.contains(id) && found.lines().count() == 1, "{found}");
        assert!(path.exists());
    }
}

#[test]
fn records_of_other_runs_are_rejected() {
    let fixture = Fixture::new();
    let (own, other) = (record_of(fixture.run()), record_of(&fixture.study.runs[1]));
    let changed = |change: &dyn Fn(&mut RunRecord)| changed(&own, change);
    let cases = [
        (
            changed(&|record| record.config = other.config.clone()),
            "optimizer.lr is 0.3, expected 0.001",
        ),
        (
            changed(&|record| record.config = "seed = ".into()),
            "has an invalid configuration",
        ),
        (
            changed(&|record| record.placement_hash = "0123".into()),
            "placement_hash 0123",
        ),
        (
            changed(&|record| record.grid_point.lr = 0.5),
            "is labelled pre-norm lr 0.5 seed 1",
        ),
        (
            changed(&|record| record.grid_point.seed = 9),
            "is labelled pre-norm lr 0.001 seed 9",
        ),
        (changed(&|record| record.id = other.id.clone()), "expected"),
    ];
    assert_rejected(&fixture, &cases);
    // Another placement name and other log settings do not matter.
    let record = changed(&|record| {
        record.grid_point.placement = "mine".into();
        record.config = record.config.replace("dumps = 16", "dumps = 3");
    });
    fixture.folder.write_record(&record).unwrap();
    assert_eq!(
        fixture.read().unwrap(),
        [RunRecord {
            grid_point: own.grid_point.clone(),
            ..record
        }]
    );
}

#[test]
fn records_with_inconsistent_losses_are_rejected() {
    let fixture = Fixture::new();
    let own = record_of(fixture.run());
    let changed = |change: &dyn Fn(&mut RunRecord)| changed(&own, change);
    let cases = [
        (
            changed(&|record| record.validation_loss = Some(3.0)),
            "validation loss of 3 nats, but the last",
        ),
        (
            changed(&|record| record.validation_loss = None),
            "has no validation loss",
        ),
        (
            changed(&|record| record.train_loss = None),
            "has no training loss",
        ),
        (
            changed(&|record| record.validation.clear()),
            "was not recorded during training",
        ),
        (
            changed(&|record| record.validation[0].step = 5),
            "after its last step or out of order",
        ),
        (
            changed(&|record| record.train_loss = Some(4.6)),
            "its curve ends between 4.5000 and 4.5000",
        ),
        (
            changed(&|record| record.curve.step[3] = 5),
            "does not end at its last step, 4",
        ),
        (
            changed(&|record| record.curve.grad_norm.truncate(3)),
            "has gaps",
        ),
        (
            changed(&|record| record.cost.tokens_per_second = -1.0),
            "throughput of -1 tokens/s",
        ),
    ];
    assert_rejected(&fixture, &cases);
}

#[test]
fn records_that_contradict_their_status_are_rejected() {
    let fixture = Fixture::new();
    let own = record_of(fixture.run());
    let changed = |change: &dyn Fn(&mut RunRecord)| changed(&own, change);
    let cases = [
        (
            changed(&|record| record.steps = 3),
            "finished after 3 steps, expected 4",
        ),
        (
            changed(&|record| {
                record.curve.loss[1] = 3.9;
            }),
            "has status finished, but its training loss rose by more than 0.5 nats",
        ),
        (
            changed(&|record| {
                record.status = RunStatus::Diverged {
                    step: 2,
                    reason: "the training loss rose again from 3.000 to 4.500 nats".into(),
                }
            }),
            "has status diverged (loss rose again), but",
        ),
        (
            changed(&|record| {
                record.status = RunStatus::Diverged {
                    step: 5,
                    reason: "not finite".into(),
                }
            }),
            "diverged after step 5, expected at most 4",
        ),
        (
            changed(&|record| record.status = RunStatus::Eliminated { step: 4 }),
            "successive halving, but the study does not use it",
        ),
        (
            changed(&|record| record.status = RunStatus::Unfinished { step: 2 }),
            "unfinished run",
        ),
    ];
    assert_rejected(&fixture, &cases);
}

#[test]
fn records_of_the_repository_match_their_plans() {
    let studies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../studies");
    for (name, runs) in [("gutenberg-6l", 120), ("moe-4l", 45)] {
        let folder = StudyFolder::new(studies.join(name));
        let study = folder.study().unwrap();
        let read = folder.read(&study.runs).unwrap();
        assert_eq!(
            (read.records.len(), read.without_checksum.len()),
            (runs, runs)
        );
    }
}
