//! Verdicts and sentences of an analysis.

mod certainty;
#[cfg(test)]
mod tests;

use super::super::stats::Paired;
use super::show::{Digits, list, seeds, short};
use super::{Analysis, Best, Comparison, Edge, PlacementSummary, RateSummary, Span, Verdict};
use crate::digits::{grouped, percent};
use certainty::{certainty, resolving};

/// Returns a sentence that compares one placement with the baseline. It contains "better" or "worse" only if
/// that is the verdict.
pub fn sentence(placement: &PlacementSummary, analysis: &Analysis) -> String {
    let (name, baseline) = (&placement.placement, &analysis.rules.baseline);
    if name == baseline {
        return match &placement.best {
            Some(best) => format!(
                "{name} is the baseline: {:.3} nats at its best learning rate, {} ({})",
                best.loss.mean,
                best.lr,
                seeds(best.loss.n as u64)
            ),
            None => {
                format!("{name} is the baseline, but at no learning rate did every seed finish")
            }
        };
    }
    let Some(against) = &placement.against else {
        let reason = placement
            .why_not
            .as_deref()
            .unwrap_or("there is no comparison");
        return format!("{name} is not compared with {baseline}: {reason}");
    };
    let Paired {
        n, mean, low, high, ..
    } = against.difference;
    let digits = Digits::of(&against.difference);
    let level = percent(1.0 - analysis.rules.alpha);
    let interval = match analysis.comparisons() {
        1 => format!("{level} interval"),
        _ => format!("simultaneous {level} interval"),
    };
    let count = seeds(n as u64);
    let found = |word: &str, by: f64, low: f64, high: f64| {
        format!(
            "{name} is {word} than {baseline} by {} nats ({interval} {} to {}, beyond the margin of {} \
             nats, {}, {count})",
            digits.show(by),
            digits.show(low),
            digits.show(high),
            analysis.rules.margin,
            chance(against, analysis)
        )
    };
    match against.verdict {
        Verdict::Equivalent => format!(
            "{name} is equivalent to {baseline} within the margin of {} nats (difference {} nats, \
             {interval} {} to {}, {count})",
            analysis.rules.margin,
            digits.show(mean),
            digits.show(low),
            digits.show(high),
        ),
        Verdict::Indistinguishable => format!(
            "{name} is not distinguishable from {baseline} at {count} (difference {} nats, {interval} \
             {} to {}, margin {} nats); {}{}",
            digits.show(mean),
            digits.show(low),
            digits.show(high),
            analysis.rules.margin,
            resolving(
                against,
                analysis.rules.margin,
                "a difference as large as the one seen"
            ),
            at_one_rate(placement)
        ),
        Verdict::Better => found("better", -mean, -high, -low),
        Verdict::Worse => found("worse", mean, low, high),
    }
}

/// Returns a note that a comparison holds at one learning rate only, if no other was tried.
fn at_one_rate(placement: &PlacementSummary) -> String {
    match &placement.best {
        Some(Best {
            lr,
            at_edge: Some(Edge::Only),
            ..
        }) => format!("; this holds at learning rate {lr} only, since no other was tried"),
        _ => String::new(),
    }
}

/// Summarizes the analysis in three sentences: the best placement; tolerated learning rates and failed runs; the
/// certainty of both. For an incomplete study, states that it is incomplete.
pub fn verdict(analysis: &Analysis) -> Vec<String> {
    if analysis.placements.is_empty() && analysis.complete {
        return vec![
            "The study has no runs, so that no placement can be called best.".to_owned(),
            "Nothing is known about tolerance of the learning rate or stability.".to_owned(),
            "No comparison was made.".to_owned(),
        ];
    }
    if !analysis.complete {
        return vec![
            match analysis.missing {
                0 => "Incomplete: runs of another group of this study are missing. No placement is called \
                      best, better or worse before all are there: which ones are missing need not be chance."
                    .to_owned(),
                _ => format!(
                    "Incomplete: {} of {} runs are recorded. No placement is called best, better or worse \
                     before all are: which ones are missing need not be chance.",
                    grouped(analysis.recorded as u64),
                    grouped(analysis.planned as u64)
                ),
            },
            match analysis.recorded {
                0 => {
                    "Nothing is known about tolerance of the learning rate or stability.".to_owned()
                }
                _ => format!("Of those recorded: {}.", failures(analysis)),
            },
        ];
    }
    vec![lowest(analysis), tolerance(analysis), certainty(analysis)]
}

/// Returns the first sentence: lowest loss, and placements that differ from the baseline.
fn lowest(analysis: &Analysis) -> String {
    let baseline = &analysis.rules.baseline;
    let finished = analysis.placements.iter().filter_map(|placement| {
        let best = placement.best.as_ref()?;
        Some((placement, best))
    });
    let lowest = finished.min_by(|(_, a), (_, b)| a.loss.mean.total_cmp(&b.loss.mean));
    let Some((placement, best)) = lowest else {
        return "No placement finished all its seeds at any learning rate, so that none can be called best."
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
    let mut text = format!(
        "{name} {has} ({:.3} nats at learning rate {}, {})",
        best.loss.mean,
        best.lr,
        seeds(best.loss.n as u64)
    );
    let own = placement.against.as_ref().map(|against| against.verdict);
    text += &match own {
        _ if name == baseline => " and is the baseline".to_owned(),
        Some(Verdict::Better) => format!(" and is better than the baseline, {baseline}"),
        Some(Verdict::Worse) => {
            format!(", but over common seeds is worse than the baseline, {baseline}")
        }
        Some(Verdict::Equivalent) => format!(
            ", but is equivalent to the baseline, {baseline}, within the margin of {} nats",
            analysis.rules.margin
        ),
        Some(Verdict::Indistinguishable) => {
            format!(", but is not distinguishable from the baseline, {baseline}")
        }
        None if entry(analysis, baseline).is_none() => {
            format!("; the study has no runs of the baseline, {baseline}")
        }
        None => format!(", but is not compared with the baseline, {baseline}"),
    };
    let others = |verdict: Verdict| -> Vec<&str> {
        let all = compared(analysis)
            .filter(|(entry, against)| entry.placement != *name && against.verdict == verdict);
        all.map(|(entry, _)| entry.placement.as_str()).collect()
    };
    let (better, worse) = (others(Verdict::Better), others(Verdict::Worse));
    if !better.is_empty() {
        let also = if own == Some(Verdict::Better) {
            "also better"
        } else {
            "better than the baseline"
        };
        text += &format!("; {also}: {}", list(&better));
    }
    if !worse.is_empty() {
        text += &format!("; worse than the baseline: {}", list(&worse));
    }
    let equivalent = others(Verdict::Equivalent);
    if !equivalent.is_empty() {
        text += &format!("; equivalent to the baseline: {}", list(&equivalent));
    }
    let some_other = compared(analysis).any(|(entry, _)| entry.placement != *name);
    if some_other && better.is_empty() && worse.is_empty() {
        text += "; no other placement that was compared differs significantly from the baseline";
    }
    text + "."
}

/// Returns the second sentence: ranges of learning rates, and failures.
fn tolerance(analysis: &Analysis) -> String {
    let rates = |entry: &PlacementSummary| entry.rates.len();
    let text = match analysis.placements.iter().map(rates).max() {
        None | Some(0 | 1) => {
            "Only one learning rate was tried, so that tolerance of others is unknown".to_owned()
        }
        Some(_) => spans(analysis),
    };
    format!("{text}; {}.", failures(analysis))
}

/// Lists the learning rate range of each placement, at grid resolution.
fn spans(analysis: &Analysis) -> String {
    let span = |entry: &PlacementSummary| {
        let Span { low, high, .. } = entry.tolerance?;
        let name = &entry.placement;
        Some(match low == high {
            true => format!("{name} {low}"),
            false => format!("{name} {low} to {high}"),
        })
    };
    let spans: Vec<String> = analysis.placements.iter().filter_map(span).collect();
    if spans.is_empty() {
        return "No placement has a best learning rate, so that tolerance of others is unknown"
            .into();
    }
    let mut rates = analysis.placements.iter().flat_map(|entry| &entry.rates);
    let halved = match rates.any(|rate| rate.halved > 0) {
        true => "; rates that halving left out count as outside",
        false => "",
    };
    format!(
        "Learning rates within {} nats of a placement's best loss: {} (of those tried, whose neighbours \
         differ by a factor of {}; spans are known to such a step only and are not compared{halved})",
        analysis.rules.tolerance,
        spans.join(", "),
        steps(analysis)
    )
}

/// Returns the ratios of neighbouring learning rates: `2.5`, or `2.4 to 2.5`.
fn steps(analysis: &Analysis) -> String {
    let pairs = (analysis.placements.iter()).flat_map(|entry| entry.rates.windows(2));
    let steps: Vec<f64> = pairs.map(|pair| pair[1].lr / pair[0].lr).collect();
    let least = steps.iter().copied().fold(f64::INFINITY, f64::min);
    let most = steps.iter().copied().fold(0.0, f64::max);
    match (short(least), short(most)) {
        (least, most) if least == most => most,
        (least, most) => format!("{least} to {most}"),
    }
}

/// Lists diverged runs and runs that had not learned yet, by placement.
fn failures(analysis: &Analysis) -> String {
    let counted = |count: fn(&RateSummary) -> u64| -> Vec<String> {
        let of = |entry: &PlacementSummary| {
            let all: u64 = entry.rates.iter().map(RateSummary::runs).sum();
            let found: u64 = entry.rates.iter().map(count).sum();
            let rates = entry.rates.iter().filter(|rate| count(rate) > 0);
            let rates: Vec<String> = rates.map(|rate| rate.lr.to_string()).collect();
            let rates: Vec<&str> = rates.iter().map(String::as_str).collect();
            (found > 0)
                .then(|| format!("{} {found} of {all} (at {})", entry.placement, list(&rates)))
        };
        analysis.placements.iter().filter_map(of).collect()
    };
    let lost = counted(|rate| rate.diverged);
    let mut text = match lost.as_slice() {
        [] => "no run was lost".to_owned(),
        lost => format!("lost runs: {}", lost.join(", ")),
    };
    let early = counted(|rate| rate.not_learned);
    if !early.is_empty() {
        text += &format!(
            "; runs that had not learned yet, a matter of the budget and no failure: {}",
            early.join(", ")
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
    (analysis.placements.iter()).filter_map(|entry| Some((entry, entry.against.as_ref()?)))
}

fn chance(against: &Comparison, analysis: &Analysis) -> String {
    let p = match against.p_adjusted {
        p if p < 0.001 => "p < 0.001".to_owned(),
        p => format!("p = {p:.3}"),
    };
    match analysis.comparisons() {
        1 => p,
        all => format!("{p} corrected for {all} comparisons"),
    }
}
