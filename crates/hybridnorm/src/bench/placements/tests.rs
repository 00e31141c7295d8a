use super::*;

const SHAPE: &str = "[model]\nd_model = 16\nn_layers = 1\nn_heads = 2\nd_ff = 32\n\
     vocab_size = 40\n[train]\nbatch_size = 2\nseq_len = 8\n";

fn only(names: &[&str]) -> PlacementsOptions {
    PlacementsOptions {
        rounds: 3,
        only: names.iter().map(|&name| name.to_owned()).collect(),
    }
}

fn run(
    options: &PlacementsOptions,
    measure: MeasureFn<'_>,
    stop: &AtomicBool,
) -> Result<Option<PlacementsReport>> {
    let config = Config::parse(SHAPE, &[]).unwrap();
    placements(&config, options, measure, stop, &mut |_| {})
}

#[test]
fn ratios_are_computed_per_pair() {
    // The machine slows down steadily; a placement takes twice as long.
    let mut speed = 1024.0;
    let mut order = Vec::new();
    let mut measure = |kind: BenchmarkKind, candidate: &Candidate| {
        order.push((kind, candidate.name));
        let own = if candidate.name == BASELINE { 1.0 } else { 0.5 };
        speed *= 0.5;
        Ok(Measurement {
            tokens_per_second: own * speed,
            peak_rss_bytes: Some(if own == 1.0 { 100 } else { 150 }),
        })
    };
    let stop = AtomicBool::new(false);
    let report = run(&only(&["qk-norm", "pre-norm-qk"]), &mut measure, &stop);
    let report = report.unwrap().unwrap();
    assert_eq!(report.rows.len(), 1, "an alias is the same placement");
    let row = &report.rows[0];
    assert_eq!(row.step.relative_speeds, [0.25; 3]);
    assert_eq!(row.step.relative_speed, 0.25);
    assert_eq!(row.step.tokens_per_second, 32.0);
    assert_eq!(report.baseline_step.unwrap().tokens_per_second, 128.0);
    assert_eq!(row.decode.relative_memory, Some(1.5));
    assert_eq!(order.len(), 12);
    assert_eq!(order[0], (BenchmarkKind::Step, BASELINE));
    assert_eq!(order[1], (BenchmarkKind::Step, "pre-norm-qk"));
    assert_eq!(order[11], (BenchmarkKind::Decode, "pre-norm-qk"));
}

#[test]
fn placements_that_cannot_be_measured_are_listed() {
    let mut measure = |_: BenchmarkKind, candidate: &Candidate| match candidate.name {
        "sandwich" => Err(Error::invalid_value("model", "too large")),
        _ => Ok(Measurement {
            tokens_per_second: 1.0,
            peak_rss_bytes: None,
        }),
    };
    let stop = AtomicBool::new(false);
    let report = run(&only(&["sandwich", "olmo2"]), &mut measure, &stop);
    let report = report.unwrap().unwrap();
    assert_eq!(report.rows.len(), 1);
    assert_eq!(report.rows[0].step.relative_memory, None);
    assert_eq!(report.skipped.len(), 1);
    assert_eq!(report.skipped[0].name, "sandwich");
    assert_eq!(report.skipped[0].reason, "too large");
}

#[test]
fn stop_flag_interrupts_the_benchmark() {
    let stop = AtomicBool::new(false);
    let mut count = 0;
    let mut measure = |_: BenchmarkKind, _: &Candidate| {
        count += 1;
        stop.store(true, Ordering::Relaxed);
        Err(Error::invalid_value("model", "interrupted"))
    };
    assert_eq!(run(&only(&[]), &mut measure, &stop).unwrap(), None);
    assert_eq!(count, 1);
}

#[test]
fn in_process_measures_training_and_decoding() {
    let mut measure = in_process(0.0, Device::Cpu);
    let stop = AtomicBool::new(false);
    let report = run(&only(&["hybridnorm"]), &mut measure, &stop);
    let row = &report.unwrap().unwrap().rows[0];
    assert!(row.step.tokens_per_second > 0.0);
    assert!(row.decode.relative_speed > 0.0);
}
