use serde_json::Value;

use super::super::record::{Cost, Curve, RunStatus, ValidationLoss};
use super::super::rungs::HALVING;
use super::*;
use crate::files::checksummed;
use crate::train::spikes;

mod records;

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

fn record_of(run: &PlannedRun) -> RunRecord {
    let model = run.config.model.as_ref().unwrap();
    let model = model.resolve(16, Some(257)).unwrap();
    RunRecord {
        id: run.id.clone(),
        grid_point: run.grid_point.clone(),
        config: run.config.to_toml(),
        placement_hash: model.placement.hash(),
        equations: "X′ = X + \"A\"(N(X))\n".into(),
        data: "66ce".into(),
        validation_data: Some("77ce".into()),
        parameters: 1234,
        active_parameters: None,
        status: RunStatus::Finished,
        steps: 4,
        tokens: 64,
        validation_loss: Some(4.854_457_018_012_825),
        tasks: Default::default(),
        train_loss: Some(4.500_001),
        max_grad_norm: 4.7,
        spikes: spikes::SpikeCounts::default(),
        curve: Curve {
            step: vec![1, 2, 3, 4],
            loss: vec![8.056_673, 7.5, 5.0, 4.5],
            grad_norm: vec![f32::MAX, 3.0, 1.0, 1.0],
            update_norm: vec![0.0, 1e-30, 1.0, 1.0],
            other_metrics: [(
                "router_z".to_owned(),
                vec![Some(2.0), None, Some(1.5), Some(1.0)],
            )]
            .into(),
        },
        validation: vec![ValidationLoss {
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
            bf16_unit: None,
            threads: Some(2),
            version: Some("1".into()),
        },
    }
}

struct Fixture {
    folder: StudyFolder,
    study: Study,
    _temporary: tempfile::TempDir,
}

impl Fixture {
    /// Returns a started study.
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let fixture = Self {
            folder: StudyFolder::new(temporary.path().join("study")),
            study: study(),
            _temporary: temporary,
        };
        fixture.start(false).unwrap();
        fixture
    }

    fn start(&self, resume: bool) -> Result<StartedStudy> {
        let options = options(resume, false);
        self.folder.start(&self.study, &self.study.runs, options)
    }

    fn run(&self) -> &PlannedRun {
        &self.study.runs[0]
    }

    /// Creates a run directory with a file `checkpoint` of content `name`.
    fn create_run_directory(&self, at: &Path, name: &str) {
        fs::create_dir_all(at).unwrap();
        fs::write(at.join("checkpoint"), name).unwrap();
    }

    fn read(&self) -> Result<Vec<RunRecord>> {
        self.folder.records(&self.study.runs)
    }
}

#[test]
fn history_reports_changes() {
    let fixture = Fixture::new();
    let (folder, study) = (&fixture.folder, &fixture.study);
    let changes = |study: &Study| folder.changes(study).unwrap().known;
    let with = |change: &dyn Fn(&mut super::super::StudyConfig)| {
        let mut file = study.config.clone();
        change(&mut file);
        Study::new(file).unwrap()
    };
    let wider = with(&|file| file.study.rules.margin = 0.5);
    let longer = with(&|file| file.train.steps = 9);
    let kept = with(&|file| file.study.keep_runs = true);
    // Before results exist, everything may change.
    folder.write_study(&wider).unwrap();
    folder.write_study(study).unwrap();
    assert!(changes(&longer).is_empty());
    folder.write_record(&record_of(fixture.run())).unwrap();
    assert!(changes(study).is_empty());
    assert!(changes(&kept).is_empty());
    let wider_margin = "study.rules.margin from 0.01 to 0.5 after 1 of 4 runs had ended";
    assert_eq!(changes(&wider), [wider_margin]);
    let more_steps = "train.steps from 4 to 9 after 1 of 4 runs had ended";
    assert_eq!(changes(&longer), [more_steps]);
    // As if runs of the changed study had been started, and then the earlier study restored.
    folder.write_study(&longer).unwrap();
    assert_eq!(changes(&longer), [more_steps]);
    assert!(changes(study).is_empty());
    folder.write_study(&wider).unwrap();
    folder.write_record(&record_of(&study.runs[1])).unwrap();
    assert_eq!(
        changes(study),
        [
            wider_margin,
            "study.rules.margin from 0.5 to 0.01 after 2 of 4 runs had ended"
        ]
    );
}

#[test]
fn a_modified_history_is_rejected() {
    let fixture = Fixture::new();
    let (folder, study) = (&fixture.folder, &fixture.study);
    folder.write_record(&record_of(fixture.run())).unwrap();
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
    value
        .as_object_mut()
        .unwrap()
        .remove(checksummed::KEY)
        .unwrap();
    fs::write(&path, value.to_string()).unwrap();
    assert!(
        fixture
            .read()
            .unwrap_err()
            .to_string()
            .contains("no checksum")
    );
}

#[test]
fn a_kill_while_finishing_keeps_the_run() {
    let fixture = Fixture::new();
    let record = record_of(fixture.run());
    let (folder, id) = (&fixture.folder, record.id.as_str());
    let (work, kept) = (folder.work(id), folder.kept(id));
    // The record was written by an earlier version, and the run not moved yet.
    fixture.create_run_directory(&work, "one");
    folder.write_record(&record).unwrap();
    let note = folder.complete_clean_up(&record, true).unwrap();
    // Without records, its progress is unknown.
    assert!(note.unwrap().contains("holds 0 of the 4 steps"));
    assert!(work.join("checkpoint").exists());
    let done = RunRecord {
        steps: 0,
        ..record.clone()
    };
    assert_eq!(folder.complete_clean_up(&done, true).unwrap(), None);
    assert!(kept.join("checkpoint").exists() && !work.exists());
    // The run was moved, and its record not written yet.
    fs::remove_file(folder.record_path(id)).unwrap();
    folder.move_back_to_work(id).unwrap();
    assert!(work.join("checkpoint").exists() && !kept.exists());
    folder.finish(&record, true).unwrap();
    assert!(kept.join("checkpoint").exists() && !work.exists());
    assert!(folder.has_record(id).unwrap());
    // The same run exists twice: nothing is removed.
    fixture.create_run_directory(&work, "two");
    assert!(
        folder
            .complete_clean_up(&record, true)
            .unwrap()
            .unwrap()
            .contains("already in kept/")
    );
    assert!(folder.finish(&record, true).is_err());
    assert!(folder.move_back_to_work(id).is_err());
    assert!(work.exists() && kept.exists());
    // Runs that are not kept are removed, even after a kill during removal.
    fs::rename(&work, folder.removal_path(id)).unwrap();
    fixture.create_run_directory(&work, "three");
    assert_eq!(folder.complete_clean_up(&record, false).unwrap(), None);
    assert!(!work.exists() && !folder.removal_path(id).exists() && kept.exists());
}

/// Returns the study of the fixture with one more seed.
fn wider_study() -> Study {
    let mut other = study();
    other.config.study.seeds = vec![1, 2];
    Study::new(other.config).unwrap()
}

fn options(resume: bool, is_shard: bool) -> StartOptions {
    StartOptions {
        resume,
        is_shard,
        locking: Locking::Required,
    }
}

#[test]
fn only_the_lock_holder_reads_and_writes() {
    let fixture = Fixture::new();
    let path = fixture.folder.path().join(STUDY);
    let before = fs::read(&path).unwrap();
    let holder = fixture.start(false).unwrap();
    let other = wider_study();
    let start = |resume, is_shard| {
        let options = options(resume, is_shard);
        fixture.folder.start(&other, &other.runs, options)
    };
    for (resume, is_shard) in [(false, false), (true, false), (true, true)] {
        let found = start(resume, is_shard).unwrap_err().to_string();
        assert!(
            found.contains("another process is working on this study"),
            "{found}"
        );
        assert_eq!(fs::read(&path).unwrap(), before);
    }
    drop(holder);
    // A study without runs can be started again; another study cannot.
    fixture.start(false).unwrap();
    assert!(start(false, false).is_err());
    assert!(start(false, true).is_err());
}

#[test]
fn a_shard_of_a_changed_study_is_rejected_while_others_run() {
    let fixture = Fixture::new();
    let path = fixture.folder.path().join(STUDY);
    let before = fs::read(&path).unwrap();
    let other = wider_study();
    let start = |study: &Study, resume| {
        let options = options(resume, true);
        fixture.folder.start(study, &study.runs, options)
    };
    let shards = [(); 2].map(|()| start(&fixture.study, false).unwrap());
    assert!(start(&other, true).is_err());
    assert_eq!(fs::read(&path).unwrap(), before);
    drop(shards);
    fixture
        .folder
        .write_record(&record_of(fixture.run()))
        .unwrap();
    let found = fixture.start(false).unwrap_err().to_string();
    assert!(found.contains("already holds a study"), "{found}");
    let changed = start(&other, true).unwrap();
    assert!(changed.note.is_some());
    assert_ne!(fs::read(&path).unwrap(), before);
}

#[test]
fn partial_files_are_removed() {
    let fixture = Fixture::new();
    let folder = fixture.folder.path();
    let leftovers = ["study.toml", HISTORY, HALVING, "runs/x.json", "kept/y"]
        .map(|name| folder.join(format!("{name}.0123456789abcdef.partial")));
    fs::create_dir(folder.join(KEPT)).unwrap();
    for path in &leftovers {
        fs::write(path, "{").unwrap();
    }
    fixture.start(true).unwrap();
    assert!(leftovers.iter().all(|path| !path.exists()));
}
