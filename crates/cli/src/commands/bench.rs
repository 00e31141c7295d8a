//! `hybridnorm bench`.

use hybridnorm::bench::{self, StepOptions, StepReport};
use hybridnorm::train::Config;
use hybridnorm::{Device, Error};

use super::Ending;
use crate::args::{BenchArgs, BenchCommand};
use crate::console;
use crate::stop::Stop;
use crate::table::{bytes, grouped, numbers, scaled};

/// What is measured where no configuration is given.
const DEFAULT: &str = include_str!("../../../../configs/bench.toml");

pub fn run(command: BenchCommand) -> Result<Ending, Error> {
    Stop::listen()?;
    match command {
        BenchCommand::Step(args) => {
            let config = configuration(&args)?;
            let report = step(&config, args.seconds)?;
            match args.json {
                true => console::print_json(&report)?,
                false => console::print(&step_text(&report))?,
            }
        }
    }
    Ok(Ending::Done)
}

fn configuration(args: &BenchArgs) -> Result<Config, Error> {
    match &args.config {
        Some(path) => Config::load(path, &args.settings),
        None => Config::parse(DEFAULT, &args.settings),
    }
}

fn step(config: &Config, seconds: f64) -> Result<StepReport, Error> {
    let options = StepOptions {
        batch_size: config.train.batch_size,
        seq_len: config.train.seq_len,
        grad_accum_steps: config.train.grad_accum_steps,
        optimizer: config.optimizer.clone(),
        seconds,
    };
    bench::step(&config.model_config()?, &options, &Device::flex())
}

fn step_text(report: &StepReport) -> String {
    let mut table = numbers(&["op", "time a step", "share"]);
    let mut ops: Vec<_> = report.seconds_by_op.iter().collect();
    ops.sort_by(|a, b| b.1.total_cmp(a.1));
    for (op, seconds) in ops {
        table.add_row([
            (*op).to_owned(),
            format!("{:.2} ms", 1e3 * seconds),
            format!("{:.1} %", 100.0 * seconds / report.step_seconds),
        ]);
    }
    format!(
        "parameters        {}\n\
         threads           {}\n\
         tokens/s          {}\n\
         step              {:.2} ms (median of {})\n\
         model arithmetic  {:.1} GFLOP/s, {:.1} % of the best matrix product's {:.1}\n\
         peak memory       {}\n\
         page faults       {} a step\n{table}\n",
        scaled(report.parameters as f64),
        report.threads,
        grouped(report.tokens_per_second as u64),
        1e3 * report.step_seconds,
        report.steps,
        report.gflops,
        100.0 * report.sgemm_share,
        report.sgemm_gflops,
        report.peak_rss_bytes.map_or("unknown".into(), bytes),
        report
            .page_faults_per_step
            .map_or("unknown".into(), |faults| format!("{faults:.1}")),
    )
}
