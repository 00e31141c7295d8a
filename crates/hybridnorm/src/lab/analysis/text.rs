//! Verdicts and sentences of an analysis as text.

mod certainty;
#[cfg(test)]
mod tests;

use super::super::stats::PairedTest;
use super::format::{Decimals, list, one_decimal, seeds};
use super::{
    Analysis, Best, Comparison, Edge, LearningRateSummary, LrRange, PlacementSummary, Verdict,
};
use crate::format_number::{percent, with_thousands_separators};
use certainty::{certainty, required_seeds};

/// Returns a sentence that compares one placement with the baseline. It contains "better" or "worse" only if
/// that is the verdict.
pub fn comparison_text(placement: &PlacementSummary, analysis: &Analysis) -> String {
    let (name, baseline) = (&placement.placement, &analysis.rules.baseline);
    if name == baseline {
        return baseline_sentence(placement);
    }
    match &placement.comparison {
        Some(found) => comparison_sentence(placement, found, analysis),
        None => {
            let reason = placement.no_comparison_reason.as_deref();
            let reason = reason.unwrap_or("there is no comparison");
            format!("{name} is not compared with {baseline}: {reason}")
        }
    }
}

fn baseline_sentence(placement: &PlacementSummary) -> String {
    let name = &placement.placement;
    match &placement.best {
        Some(best) => format!(
            "{name} is the baseline: {:.3} nats at its best learning rate, {} ({})",
            best.loss.mean,
            best.lr,
            seeds(best.loss.n as u64)
        ),
        None => {
            format!("{name} is the baseline, but has no learning rate at which every seed finished")
        }
    }
}

fn comparison_sentence(
    placement: &PlacementSummary,
    found: &Comparison,
    analysis: &Analysis,
) -> String {
    let (name, baseline) = (&placement.placement, &analysis.rules.baseline);
    let margin = analysis.rules.margin;
    let PairedTest {
        n, mean, low, high, ..
    } = found.difference;
    let digits = Decimals::of(&found.difference);
    let level = percent(1.0 - analysis.rules.alpha);
    let interval = match analysis.n_planned_comparisons() {
        1 => format!("{level} interval"),
        _ => format!("simultaneous {level} interval"),
    };
    let seeds = seeds(n as u64);
    let range = |low: f64, high: f64| format!("{} to {}", digits.format(low), digits.format(high));
    let claim = |verdict: &str, by: f64, low: f64, high: f64| {
        format!(
            "{name} is {verdict} than {baseline} by {} nats ({interval} {}, beyond the margin of {margin} \
             nats, {}, {seeds})",
            digits.format(by),
            range(low, high),
            p_value(found, analysis)
        )
    };
    match found.verdict {
        Verdict::Equivalent => format!(
            "{name} is equivalent to {baseline} within the margin of {margin} nats (difference {} nats, \
             {interval} {}, {seeds})",
            digits.format(mean),
            range(low, high),
        ),
        Verdict::NotSignificant => format!(
            "{name} is not significantly different from {baseline} beyond the margin at {seeds} (difference {} nats, \
             {interval} {}, margin {margin} nats); {}{}",
            digits.format(mean),
            range(low, high),
            required_seeds(found, margin, "a difference of the observed size"),
            single_learning_rate_note(placement)
        ),
        Verdict::Better => claim("better", -mean, -high, -low),
        Verdict::Worse => claim("worse", mean, low, high),
    }
}

/// Returns a note that a comparison holds at one learning rate only, if no other was tried.
fn single_learning_rate_note(placement: &PlacementSummary) -> String {
    match &placement.best {
        Some(Best {
            lr,
            at_edge: Some(Edge::Only),
            ..
        }) => format!("; this holds at learning rate {lr} only, since no other was tried"),
        _ => String::new(),
    }
}

/// Summarizes the analysis in three sentences: the best placement; learning rate tolerance and failed runs; the
/// certainty of both. For an incomplete study, states that it is incomplete.
pub fn summary_text(analysis: &Analysis) -> Vec<String> {
    if analysis.placements.is_empty() && analysis.complete {
        return vec![
            "The study has no runs: no placement can be called best.".to_owned(),
            STABILITY_UNKNOWN.to_owned(),
            "No comparison was made.".to_owned(),
        ];
    }
    match analysis.complete {
        true => vec![lowest(analysis), tolerance(analysis), certainty(analysis)],
        false => incomplete(analysis),
    }
}

const STABILITY_UNKNOWN: &str = "Learning rate tolerance and stability are unknown.";

fn incomplete(analysis: &Analysis) -> Vec<String> {
    let missing = match analysis.missing {
        0 => "Incomplete: runs of another group of this study are missing.".to_owned(),
        _ => format!(
            "Incomplete: {} of {} runs are recorded.",
            with_thousands_separators(analysis.recorded as u64),
            with_thousands_separators(analysis.planned as u64)
        ),
    };
    let known = match analysis.recorded {
        0 => STABILITY_UNKNOWN.to_owned(),
        _ => format!("Of the recorded runs: {}.", failures(analysis)),
    };
    vec![
        format!(
            "{missing} No placement is called best, better or worse before all are recorded, since runs may \
             not be missing at random."
        ),
        known,
    ]
}

/// Returns the first sentence: lowest loss, and placements that differ from the baseline.
fn lowest(analysis: &Analysis) -> String {
    let finished = analysis.placements.iter().filter_map(|placement| {
        let best = placement.best.as_ref()?;
        Some((placement, best))
    });
    let lowest = finished.min_by(|(_, a), (_, b)| a.loss.mean.total_cmp(&b.loss.mean));
    let Some((placement, best)) = lowest else {
        return "No placement finished all its seeds at any learning rate: none can be called best."
            .to_owned();
    };
    let name = &placement.placement;
    let as_low = |entry: &&PlacementSummary| {
        let mean = entry.best.as_ref().map(|best| best.loss.mean);
        entry.placement != *name && mean == Some(best.loss.mean)
    };
    let sharing: Vec<&str> = (analysis.placements.iter().filter(as_low))
        .map(|entry| entry.placement.as_str())
        .collect();
    let has = match sharing.as_slice() {
        [] => "has the lowest mean validation loss".to_owned(),
        others => format!(
            "shares the lowest mean validation loss with {}",
            list(others)
        ),
    };
    format!(
        "{name} {has} ({:.3} nats at learning rate {}, {}){}{}.",
        best.loss.mean,
        best.lr,
        seeds(best.loss.n as u64),
        lowest_against_baseline(placement, analysis),
        others_against_baseline(placement, analysis)
    )
}

/// Returns the comparison of the placement with the lowest loss.
fn lowest_against_baseline(placement: &PlacementSummary, analysis: &Analysis) -> String {
    let baseline = &analysis.rules.baseline;
    match placement.comparison.as_ref().map(|found| found.verdict) {
        _ if placement.placement == *baseline => " and is the baseline".to_owned(),
        Some(Verdict::Better) => format!(" and is better than the baseline, {baseline}"),
        Some(Verdict::Worse) => {
            format!(", but over common seeds is worse than the baseline, {baseline}")
        }
        Some(Verdict::Equivalent) => format!(
            ", but is equivalent to the baseline, {baseline}, within the margin of {} nats",
            analysis.rules.margin
        ),
        Some(Verdict::NotSignificant) => {
            format!(
                ", but is not significantly different from the baseline, {baseline}, beyond the margin"
            )
        }
        None if entry(analysis, baseline).is_none() => {
            format!("; the study has no runs of the baseline, {baseline}")
        }
        None => format!(", but is not compared with the baseline, {baseline}"),
    }
}

/// Lists the placements other than the one with the lowest loss that differ from the baseline.
fn others_against_baseline(lowest: &PlacementSummary, analysis: &Analysis) -> String {
    let others = || compared(analysis).filter(|(entry, _)| entry.placement != lowest.placement);
    let with = |verdict: Verdict| -> Vec<&str> {
        let entries = others().filter(|(_, found)| found.verdict == verdict);
        entries.map(|(entry, _)| entry.placement.as_str()).collect()
    };
    let (better, worse) = (with(Verdict::Better), with(Verdict::Worse));
    let mut text = String::new();
    if !better.is_empty() {
        let own = lowest.comparison.as_ref().map(|found| found.verdict);
        let also = match own == Some(Verdict::Better) {
            true => "also better",
            false => "better than the baseline",
        };
        text += &format!("; {also}: {}", list(&better));
    }
    if !worse.is_empty() {
        text += &format!("; worse than the baseline: {}", list(&worse));
    }
    let equivalent = with(Verdict::Equivalent);
    if !equivalent.is_empty() {
        text += &format!("; equivalent to the baseline: {}", list(&equivalent));
    }
    if others().next().is_some() && better.is_empty() && worse.is_empty() {
        text += "; no other compared placement differs significantly from the baseline";
    }
    text
}

/// Returns the second sentence: ranges of learning rates, and failures.
fn tolerance(analysis: &Analysis) -> String {
    let learning_rate_count = |entry: &PlacementSummary| entry.learning_rates.len();
    let text = match analysis.placements.iter().map(learning_rate_count).max() {
        None | Some(0 | 1) => {
            "Only one learning rate was tried: learning rate tolerance is unknown".to_owned()
        }
        Some(_) => lr_ranges(analysis),
    };
    format!("{text}; {}.", failures(analysis))
}

/// Lists the learning rate range of each placement, at grid resolution.
fn lr_ranges(analysis: &Analysis) -> String {
    let range = |entry: &PlacementSummary| {
        let LrRange { low, high, .. } = entry.lr_tolerance?;
        let name = &entry.placement;
        Some(match low == high {
            true => format!("{name} {low}"),
            false => format!("{name} {low} to {high}"),
        })
    };
    let ranges: Vec<String> = analysis.placements.iter().filter_map(range).collect();
    if ranges.is_empty() {
        return "No placement has a best learning rate: learning rate tolerance is unknown".into();
    }
    let mut learning_rates = analysis
        .placements
        .iter()
        .flat_map(|entry| &entry.learning_rates);
    let eliminated = match learning_rates.any(|summary| summary.eliminated > 0) {
        true => "; learning rates eliminated by halving count as outside",
        false => "",
    };
    format!(
        "Learning rates within {} nats of a placement's best loss: {} (of those tried, whose neighbours \
         differ by a factor of {}; ranges are at grid resolution and are not compared{eliminated})",
        analysis.rules.tolerance,
        ranges.join(", "),
        grid_factors(analysis)
    )
}

/// Returns the ratios of neighbouring learning rates: `2.5`, or `2.4 to 2.5`.
fn grid_factors(analysis: &Analysis) -> String {
    let pairs = (analysis.placements.iter()).flat_map(|entry| entry.learning_rates.windows(2));
    let steps: Vec<f64> = pairs.map(|pair| pair[1].lr / pair[0].lr).collect();
    let least = steps.iter().copied().fold(f64::INFINITY, f64::min);
    let most = steps.iter().copied().fold(0.0, f64::max);
    match (one_decimal(least), one_decimal(most)) {
        (least, most) if least == most => most,
        (least, most) => format!("{least} to {most}"),
    }
}

/// Lists diverged runs and runs that had not learned yet, by placement.
fn failures(analysis: &Analysis) -> String {
    let counted = |count: fn(&LearningRateSummary) -> u64| -> Vec<String> {
        let of = |entry: &PlacementSummary| {
            let all: u64 = entry
                .learning_rates
                .iter()
                .map(LearningRateSummary::run_count)
                .sum();
            let found: u64 = entry.learning_rates.iter().map(count).sum();
            let summaries = entry
                .learning_rates
                .iter()
                .filter(|summary| count(summary) > 0);
            let lrs: Vec<String> = summaries.map(|summary| summary.lr.to_string()).collect();
            let lrs: Vec<&str> = lrs.iter().map(String::as_str).collect();
            (found > 0).then(|| format!("{} {found} of {all} (at {})", entry.placement, list(&lrs)))
        };
        analysis.placements.iter().filter_map(of).collect()
    };
    let diverged = counted(|summary| summary.diverged);
    let mut text = match diverged.as_slice() {
        [] => "no run diverged".to_owned(),
        diverged => format!("diverged runs: {}", diverged.join(", ")),
    };
    let not_learned = counted(|summary| summary.not_learned);
    if !not_learned.is_empty() {
        text += &format!(
            "; runs that had not learned yet (training budget too short): {}",
            not_learned.join(", ")
        );
    }
    text
}

fn entry<'a>(analysis: &'a Analysis, name: &str) -> Option<&'a PlacementSummary> {
    analysis
        .placements
        .iter()
        .find(|entry| entry.placement == name)
}

fn compared(analysis: &Analysis) -> impl Iterator<Item = (&PlacementSummary, &Comparison)> + Clone {
    (analysis.placements.iter()).filter_map(|entry| Some((entry, entry.comparison.as_ref()?)))
}

fn p_value(comparison: &Comparison, analysis: &Analysis) -> String {
    let p = match comparison.p_adjusted {
        p if p < 0.001 => "p < 0.001".to_owned(),
        p => format!("p = {p:.3}"),
    };
    match analysis.n_planned_comparisons() {
        1 => p,
        all => format!("{p} corrected for {all} comparisons"),
    }
}
