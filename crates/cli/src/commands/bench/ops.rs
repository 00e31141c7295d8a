//! `hybridnorm bench ops`.

use hybridnorm::Error;
use hybridnorm::bench::ops::{Bound, OpRow};
use hybridnorm::bench::{self, MinSpeedups, OpsOptions, OpsReport};

use crate::args::BenchOpsArgs;
use crate::console::Console;
use crate::progress::ProgressDisplay;
use crate::table::numeric_table;

pub fn run(args: &BenchOpsArgs, console: &Console) -> Result<(), Error> {
    let config = args.model.load_config()?;
    let options = OpsOptions::of(&config, args.seconds);
    let min_speedups = args.floors.as_ref().map(MinSpeedups::load).transpose()?;
    let mut display = ProgressDisplay::new(console);
    let report = bench::ops(&config.model_config()?, &options, &mut |done, total| {
        display.show_count("ops", done as u64, Some(total as u64), "kernels");
    })?;
    display.finish();
    min_speedups.map_or(Ok(()), |min_speedups| min_speedups.check(&report))?;
    args.model.output.print(&report, text)
}

fn text(report: &OpsReport) -> String {
    let mut table = numeric_table(&[
        "op",
        "direction",
        "time",
        "rate",
        "roofline",
        "of roofline",
        "f64 reference",
        "speed-up",
        "max difference",
    ]);
    for row in &report.rows {
        table.add_row(cells(row));
    }
    format!(
        "shapes          {} sequences of {} tokens\n\
         threads         {}; the reference uses one thread and f64\n\
         precision       {}\n\
         GEMM peak       {:.1} GFLOP/s in f32, {:.1} in bf16\n\
         memory          {:.2} GB/s read, {:.2} GB/s read and written\n{table}\n\
         ~: extrapolated from a part of the problem\n",
        report.micro_batch,
        report.seq_len,
        report.threads,
        report.precision,
        report.sgemm_gflops,
        report.bf16_gemm_gflops,
        report.read_gb_per_second,
        report.read_write_gb_per_second,
    )
}

fn cells(row: &OpRow) -> [String; 9] {
    let unit = match row.bound {
        Bound::Compute => "GFLOP/s",
        Bound::Read | Bound::ReadWrite => "GB/s",
    };
    let scaled = if row.reference_fraction < 1.0 {
        "~"
    } else {
        ""
    };
    [
        row.op.to_owned(),
        row.direction.to_owned(),
        format!("{:.3} ms", 1e3 * row.seconds),
        format!("{:.2} {unit}", row.rate),
        format!("{:.2}", row.limit),
        format!("{:.1} %", 100.0 * row.share_of_limit),
        format!("{scaled}{:.2} ms", 1e3 * row.reference_seconds),
        format!("{:.1}", row.speedup_over_reference),
        format!("{:.0e}", row.largest_difference),
    ]
}
