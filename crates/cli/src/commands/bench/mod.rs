//! `hybridnorm bench`.

mod ops;
mod placements;

use hybridnorm::Error;
use hybridnorm::bench::{self, DecodeOptions, DecodeReport, StepOptions, StepReport};

use super::Outcome;
use crate::args::BenchCommand;
use crate::console::Console;
use crate::signals::Signals;
use crate::table::{bytes, numeric_table, si_prefixed, with_thousands_separators};

pub fn run(command: BenchCommand, console: &Console) -> Result<Outcome, Error> {
    let signals = Signals::install()?;
    match command {
        BenchCommand::Step(args) => {
            let config = args.model.load_config()?;
            let options = StepOptions::of(&config, args.seconds);
            let report = bench::step(&config.model_config()?, &options, args.device.device)?;
            args.model.output.print(&report, step_text)?;
        }
        BenchCommand::Decode(args) => {
            let config = args.model.load_config()?;
            let options = DecodeOptions::of(&config, args.seconds);
            let report = bench::decode(&config.model_config()?, &options, args.device.device)?;
            args.model.output.print(&report, decode_text)?;
        }
        BenchCommand::Ops(args) => ops::run(&args, console)?,
        BenchCommand::Placements(args) => return placements::run(&args, console, &signals),
    }
    Ok(Outcome::Completed)
}

fn step_text(report: &StepReport) -> String {
    let mut table = numeric_table(&["op", "time per step", "share"]);
    let mut ops: Vec<_> = report.seconds_by_op.iter().collect();
    ops.sort_by(|a, b| b.1.total_cmp(a.1));
    for (op, seconds) in ops {
        table.add_row([
            (*op).to_owned(),
            format!("{:.2} ms", 1e3 * seconds),
            format!("{:.1} %", 100.0 * seconds / report.step_seconds),
        ]);
    }
    let is_f32 = report.precision == "f32";
    let used = |is_used: bool, share: f64| match is_used {
        true => format!(" ({:.1} % used)", 100.0 * share),
        false => String::new(),
    };
    format!(
        "parameters        {}\n\
         threads           {}\n\
         tokens/s          {}\n\
         step              {:.2} ms (median of {})\n\
         precision         {}, matmuls with {}\n\
         model FLOPs       {:.1} GFLOP/s\n\
         GEMM peak         f32 {:.1} GFLOP/s{}, bf16 {:.1} GFLOP/s{}\n\
         peak memory       {}\n\
         page faults       {} per step\n{table}\n",
        si_prefixed(report.parameters as f64),
        report.threads,
        with_thousands_separators(report.tokens_per_second as u64),
        1e3 * report.step_seconds,
        report.steps,
        report.precision,
        report.matmul_unit,
        report.gflops,
        report.sgemm_gflops,
        used(is_f32, report.sgemm_share),
        report.bf16_gemm_gflops,
        used(!is_f32, report.bf16_gemm_share),
        report.peak_rss_bytes.map_or("unknown".into(), bytes),
        report
            .page_faults_per_step
            .map_or("unknown".into(), |faults| format!("{faults:.1}")),
    )
}

fn decode_text(report: &DecodeReport) -> String {
    let weights = report.bytes_per_token as f64 * report.tokens_per_second;
    format!(
        "parameters        {}\n\
         threads           {}\n\
         tokens/s          {:.1}\n\
         token             {:.3} ms (median of {} after a prompt of {})\n\
         precision         {}\n\
         weights           {} per token, {:.2} GB/s\n\
         KV cache read     {} per token\n\
         memory bandwidth  {:.2} GB/s, {:.1} % used for weights\n\
         peak memory       {}\n",
        si_prefixed(report.parameters as f64),
        report.threads,
        report.tokens_per_second,
        1e3 * report.token_seconds,
        report.tokens,
        report.prompt_tokens,
        report.precision,
        bytes(report.bytes_per_token),
        1e-9 * weights,
        bytes(report.cache_bytes_per_token as u64),
        1e-9 * report.bandwidth_bytes_per_second,
        100.0 * report.bandwidth_share,
        report.peak_rss_bytes.map_or("unknown".into(), bytes),
    )
}
