use serde_json::Value;

use super::super::record::{Cost, Curve, Ending, Evaluation};
use super::super::rungs::HALVING;
use super::*;
use crate::files::sealed;
use crate::train::spikes;

fn study() -> Study {
    let text = r#"
[study]
placements = ["pre-norm", "hybridnorm"]
lr = [1e-3, 0.3]
seeds = [1]
[model]
d_model = 16
n_layers = 2
n_heads = 2
d_ff = 32
norm = { eps = 1e-6 }
[data]
train = ["text"]
tokenizer = "bytes"
[train]
steps = 4
seq_len = 16
"#;
    Study::parse(text, &[]).unwrap()
}

fn record_of(run: &Planned) -> RunRecord {
    let model = run.config.model.as_ref().unwrap();
    let model = model.settle(16, Some(257)).unwrap();
    RunRecord {
        id: run.id.clone(),
        cell: run.cell.clone(),
        config: run.config.to_toml(),
        placement_hash: model.placement.hash(),
        equations: "X′ = X + \"A\"(N(X))\n".into(),
        data: "66ce".into(),
        validation_data: Some("77ce".into()),
        parameters: 1234,
        active_parameters: None,
        ending: Ending::Finished,
        steps: 4,
        tokens: 64,
        validation_loss: Some(4.854_457_018_012_825),
        train_loss: Some(4.500_001),
        max_grad_norm: 4.7,
        spikes: spikes::Counts::default(),
        curve: Curve {
            step: vec![1, 2, 3, 4],
            loss: vec![8.056_673, 7.5, 5.0, 4.5],
            grad_norm: vec![f32::MAX, 3.0, 1.0, 1.0],
            update_norm: vec![0.0, 1e-30, 1.0, 1.0],
            further: [(
                "router_z".to_owned(),
                vec![Some(2.0), None, Some(1.5), Some(1.0)],
            )]
            .into(),
        },
        validation: vec![Evaluation {
            step: 4,
            loss: 4.854_457_018_012_825,
        }],
        layers: Vec::new(),
        cost: Cost {
            tokens_per_second: 1.5,
            seconds: 2.0,
            peak_memory_bytes: Some(7),
            estimated_memory_bytes: None,
            machine: Some("a machine".into()),
            threads: Some(2),
            version: Some("1".into()),
        },
    }
}

struct Place {
    folder: Folder,
    study: Study,
    _temporary: tempfile::TempDir,
}

impl Place {
    /// Returns a started study.
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let place = Self {
            folder: Folder::new(temporary.path().join("study")),
            study: study(),
            _temporary: temporary,
        };
        place.begin(false).unwrap();
        place
    }

    fn begin(&self, resume: bool) -> Result<Begun> {
        let how = Begin {
            resume,
            is_shard: false,
            locking: Locking::Required,
        };
        self.folder.begin(&self.study, &self.study.runs, how)
    }

    fn run(&self) -> &Planned {
        &self.study.runs[0]
    }

    /// Creates a run directory with a file `checkpoint` of content `name`.
    fn train(&self, at: &Path, name: &str) {
        fs::create_dir_all(at).unwrap();
        fs::write(at.join("checkpoint"), name).unwrap();
    }

    fn read(&self) -> Result<Vec<RunRecord>> {
        self.folder.records(&self.study.runs)
    }
}

#[test]
fn a_flipped_bit_is_refused_or_changes_nothing() {
    let place = Place::new();
    let record = record_of(place.run());
    place.folder.write_record(&record).unwrap();
    let path = place.folder.record_path(&record.id);
    let whole = fs::read(&path).unwrap();
    assert_eq!(place.read().unwrap(), std::slice::from_ref(&record));
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(read) = sealed::open::<RunRecord>(&bytes) {
            assert_eq!(read.content, record, "bit {bit}");
        }
    }
}

#[test]
fn records_of_earlier_versions_are_read_and_counted() {
    let place = Place::new();
    let [first, second] = [0, 1].map(|index| record_of(&place.study.runs[index]));
    place.folder.write_record(&first).unwrap();
    let path = place.folder.record_path(&second.id);
    fs::write(path, serde_json::to_vec(&second).unwrap()).unwrap();
    // Refused if this version started the study.
    let found = place.read().unwrap_err().to_string();
    assert!(found.contains("has no checksum"), "{found}");
    fs::remove_file(place.folder.path().join(HISTORY)).unwrap();
    let read = place.folder.read(&place.study.runs).unwrap();
    assert_eq!(read.records, [first.clone(), second.clone()]);
    assert_eq!(read.without_checksum, std::slice::from_ref(&second.id));
    // From now on, all other records need a checksum.
    place.folder.set_up(&place.study).unwrap();
    let read = place.folder.read(&place.study.runs).unwrap();
    assert_eq!(read.without_checksum, [second.id]);
    let path = place.folder.record_path(&first.id);
    fs::write(path, serde_json::to_vec(&first).unwrap()).unwrap();
    assert!(place.read().is_err());
}

#[test]
fn what_was_stated_is_kept_and_changes_are_told() {
    let place = Place::new();
    let (folder, study) = (&place.folder, &place.study);
    let changes = |study: &Study| folder.changes(study).unwrap().known;
    let with = |change: &dyn Fn(&mut super::super::StudyFile)| {
        let mut file = study.file.clone();
        change(&mut file);
        Study::new(file).unwrap()
    };
    let wider = with(&|file| file.study.rules.margin = 0.5);
    let longer = with(&|file| file.train.steps = 9);
    let kept = with(&|file| file.study.keep_runs = true);
    // Before results exist, everything may change.
    folder.set_up(&wider).unwrap();
    folder.set_up(study).unwrap();
    assert!(changes(&longer).is_empty());
    folder.write_record(&record_of(place.run())).unwrap();
    assert!(changes(study).is_empty());
    assert!(changes(&kept).is_empty());
    let said = "study.rules.margin from 0.01 to 0.5 after 1 of 4 runs had ended";
    assert_eq!(changes(&wider), [said]);
    let last = "train.steps from 4 to 9 after 1 of 4 runs had ended";
    assert_eq!(changes(&longer), [last]);
    // As if it was started, and then the earlier study was restored.
    folder.set_up(&longer).unwrap();
    assert_eq!(changes(&longer), [last]);
    assert!(changes(study).is_empty());
    folder.set_up(&wider).unwrap();
    folder.write_record(&record_of(&study.runs[1])).unwrap();
    assert_eq!(
        changes(study),
        [
            said,
            "study.rules.margin from 0.5 to 0.01 after 2 of 4 runs had ended"
        ]
    );
    // The history must have its checksum, too.
    let path = folder.path().join(HISTORY);
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.replace("margin = 0.01", "margin = 0.50")).unwrap();
    assert!(
        folder
            .changes(study)
            .unwrap_err()
            .to_string()
            .contains("checksum")
    );
    let mut value: Value = serde_json::from_str(&whole).unwrap();
    value.as_object_mut().unwrap().remove(sealed::KEY).unwrap();
    fs::write(&path, value.to_string()).unwrap();
    assert!(
        place
            .read()
            .unwrap_err()
            .to_string()
            .contains("no checksum")
    );
}

#[test]
fn records_that_do_not_match_their_plan_are_refused() {
    let place = Place::new();
    let (own, other) = (record_of(place.run()), record_of(&place.study.runs[1]));
    let changed = |change: &dyn Fn(&mut RunRecord)| {
        let mut record = own.clone();
        change(&mut record);
        record
    };
    let cases = [
        (
            changed(&|record| record.config = other.config.clone()),
            "optimizer.lr is 0.3, expected 0.001",
        ),
        (
            changed(&|record| record.config = "seed = ".into()),
            "the configuration in it cannot be read",
        ),
        (
            changed(&|record| record.placement_hash = "0123".into()),
            "placement_hash 0123",
        ),
        (
            changed(&|record| record.cell.lr = 0.5),
            "is said to be pre-norm lr 0.5 seed 1",
        ),
        (
            changed(&|record| record.cell.seed = 9),
            "is said to be pre-norm lr 0.001 seed 9",
        ),
        (
            changed(&|record| record.steps = 3),
            "finished after 3 steps, the plan has 4",
        ),
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
            "not among those on the way",
        ),
        (
            changed(&|record| record.validation[0].step = 5),
            "at steps that it did not do",
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
            changed(&|record| {
                record.curve.loss[1] = 3.9;
            }),
            "is said to be finished, but its training loss rose by more than 0.5 nats",
        ),
        (
            changed(&|record| {
                record.ending = Ending::Diverged {
                    step: 2,
                    reason: "the training loss rose again from 3.000 to 4.500 nats".into(),
                }
            }),
            "is said to have lost what it had learned",
        ),
        (
            changed(&|record| {
                record.ending = Ending::Diverged {
                    step: 5,
                    reason: "not finite".into(),
                }
            }),
            "diverged after step 5, the plan has 4",
        ),
        (
            changed(&|record| record.ending = Ending::Halved { step: 4 }),
            "successive halving, and the study has none",
        ),
        (
            changed(&|record| record.cost.tokens_per_second = -1.0),
            "speed of -1 tokens/s",
        ),
        (
            changed(&|record| record.ending = Ending::Unfinished { step: 2 }),
            "not finished",
        ),
        (changed(&|record| record.id = other.id.clone()), "expected"),
    ];
    let path = place.folder.record_path(&own.id);
    for (record, words) in cases {
        // Edited record with a valid checksum.
        let (text, _) = sealed::seal(&record, "").unwrap();
        fs::write(&path, text).unwrap();
        let found = place.read().unwrap_err().to_string();
        assert!(found.contains(words), "{words}: {found}");
        assert!(
            found.contains(&own.id) && found.lines().count() == 1,
            "{found}"
        );
        assert!(path.exists());
    }
    // Another placement name and other log settings do not matter.
    let record = changed(&|record| {
        record.cell.placement = "mine".into();
        record.config = record.config.replace("dumps = 16", "dumps = 3");
    });
    place.folder.write_record(&record).unwrap();
    assert_eq!(
        place.read().unwrap(),
        [RunRecord {
            cell: own.cell.clone(),
            ..record
        }]
    );
}

#[test]
fn a_kill_at_any_moment_of_finishing_keeps_the_run() {
    let place = Place::new();
    let record = record_of(place.run());
    let (folder, id) = (&place.folder, record.id.as_str());
    let (work, kept) = (folder.work(id), folder.kept(id));
    // The record was written by an earlier version, and the run not moved yet.
    place.train(&work, "one");
    folder.write_record(&record).unwrap();
    let note = folder.settle(&record, true).unwrap();
    // Without rows, its progress is unknown.
    assert!(note.unwrap().contains("holds 0 of the 4 steps"));
    assert!(work.join("checkpoint").exists());
    let done = RunRecord {
        steps: 0,
        ..record.clone()
    };
    assert_eq!(folder.settle(&done, true).unwrap(), None);
    assert!(kept.join("checkpoint").exists() && !work.exists());
    // The run was moved, and its record not written yet.
    fs::remove_file(folder.record_path(id)).unwrap();
    folder.reclaim(id).unwrap();
    assert!(work.join("checkpoint").exists() && !kept.exists());
    folder.finish(&record, true).unwrap();
    assert!(kept.join("checkpoint").exists() && !work.exists());
    assert!(folder.is_finished(id).unwrap());
    // The same run exists twice: nothing is removed.
    place.train(&work, "two");
    assert!(
        folder
            .settle(&record, true)
            .unwrap()
            .unwrap()
            .contains("in kept/ already")
    );
    assert!(folder.finish(&record, true).is_err());
    assert!(folder.reclaim(id).is_err());
    assert!(work.exists() && kept.exists());
    // Runs that are not kept are removed, even after a kill during removal.
    fs::rename(&work, folder.goes(id)).unwrap();
    place.train(&work, "three");
    assert_eq!(folder.settle(&record, false).unwrap(), None);
    assert!(!work.exists() && !folder.goes(id).exists() && kept.exists());
}

#[test]
fn a_study_is_looked_at_and_written_only_by_its_holder() {
    let place = Place::new();
    let path = place.folder.path().join(STUDY);
    let before = fs::read(&path).unwrap();
    let holder = place.begin(false).unwrap();
    let mut other = study();
    other.file.study.seeds = vec![1, 2];
    let other = Study::new(other.file).unwrap();
    let how = |resume, is_shard| Begin {
        resume,
        is_shard,
        locking: Locking::Required,
    };
    for how in [how(false, false), how(true, false), how(true, true)] {
        let found = place
            .folder
            .begin(&other, &other.runs, how)
            .unwrap_err()
            .to_string();
        assert!(
            found.contains("another process works on this study"),
            "{found}"
        );
        assert_eq!(fs::read(&path).unwrap(), before);
    }
    drop(holder);
    // A study without runs can be started again; another study cannot.
    place.begin(false).unwrap();
    assert!(
        place
            .folder
            .begin(&other, &other.runs, how(false, false))
            .is_err()
    );
    assert!(
        place
            .folder
            .begin(&other, &other.runs, how(false, true))
            .is_err()
    );
    // Shards of one study run concurrently; a shard of a changed study must wait for their end.
    let one = place
        .folder
        .begin(&place.study, &place.study.runs, how(false, true))
        .unwrap();
    let two = place
        .folder
        .begin(&place.study, &place.study.runs, how(false, true))
        .unwrap();
    assert!(
        place
            .folder
            .begin(&other, &other.runs, how(true, true))
            .is_err()
    );
    assert_eq!(fs::read(&path).unwrap(), before);
    drop((one, two));
    place.folder.write_record(&record_of(place.run())).unwrap();
    let found = place.begin(false).unwrap_err().to_string();
    assert!(found.contains("already holds a study"), "{found}");
    let changed = place
        .folder
        .begin(&other, &other.runs, how(true, true))
        .unwrap();
    assert!(changed.note.is_some());
    assert_ne!(fs::read(&path).unwrap(), before);
}

#[test]
fn what_killed_writers_left_goes() {
    let place = Place::new();
    let folder = place.folder.path();
    let left = ["study.toml", HISTORY, HALVING, "runs/x.json", "kept/y"]
        .map(|name| folder.join(format!("{name}.0123456789abcdef.partial")));
    fs::create_dir(folder.join(KEPT)).unwrap();
    for path in &left {
        fs::write(path, "{").unwrap();
    }
    place.begin(true).unwrap();
    assert!(left.iter().all(|path| !path.exists()));
}

#[test]
fn the_records_of_the_repository_match_their_plans() {
    let studies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../studies");
    for (name, runs) in [("gutenberg-6l", 120), ("moe-4l", 45)] {
        let folder = Folder::new(studies.join(name));
        let study = folder.study().unwrap();
        let read = folder.read(&study.runs).unwrap();
        assert_eq!(
            (read.records.len(), read.without_checksum.len()),
            (runs, runs)
        );
    }
}
