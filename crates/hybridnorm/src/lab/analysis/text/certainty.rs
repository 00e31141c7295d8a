//! Third sentence of the summary: the certainty of the first two.

use super::super::super::stats;
use super::super::format::{Decimals, counts, list, seeds};
use super::super::{Analysis, Comparison, Edge, Verdict};
use super::compared;

/// Returns the third sentence: amount of data, corrections, and undecided comparisons.
pub(super) fn certainty(analysis: &Analysis) -> String {
    let mut text = match compared(analysis).count() {
        0 => "No placement is called better or worse".to_owned(),
        comparisons => basis(analysis, comparisons),
    };
    text += &missing(analysis);
    if compared(analysis).count() > 0 {
        text += &format!("; {}", not_significant(analysis));
    }
    text + &edges(analysis) + "."
}

/// Returns the amount of data and the corrections.
fn basis(analysis: &Analysis, comparisons: usize) -> String {
    let pairs = compared(analysis).map(|(_, comparison)| comparison.pairs as u64);
    let learning_rate_counts =
        (analysis.placements.iter()).map(|entry| entry.learning_rates.len() as u64);
    let all = match comparisons {
        1 => String::new(),
        _ => format!(" and for {} comparisons", analysis.n_planned_comparisons()),
    };
    format!(
        "Based on {}, each placement at the best of {}; intervals and p values are corrected for selecting the \
         learning rate{all}; differences within {} nats are ignored",
        counts(pairs, "seed"),
        counts(learning_rate_counts, "learning rate"),
        analysis.rules.margin,
    )
}

/// Lists the missing comparisons with their reasons.
fn missing(analysis: &Analysis) -> String {
    let mut grouped: Vec<(&str, Vec<&str>)> = Vec::new();
    for entry in &analysis.placements {
        let Some(reason) = entry.no_comparison_reason.as_deref() else {
            continue;
        };
        match grouped.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, names)) => names.push(&entry.placement),
            None => grouped.push((reason, vec![&entry.placement])),
        }
    }
    let none = compared(analysis).count() == 0;
    match grouped.as_slice() {
        [] if none => ", since there is no placement besides the baseline".to_owned(),
        [(reason, _)] if none => format!(": {reason}"),
        groups => (groups.iter())
            .map(|(reason, names)| format!("; not compared: {} ({reason})", list(names)))
            .collect(),
    }
}

/// Lists the placements without a significant difference from the baseline, and the seeds required to detect one.
fn not_significant(analysis: &Analysis) -> String {
    let baseline = &analysis.rules.baseline;
    let mut found: Vec<_> = compared(analysis)
        .filter(|(_, comparison)| comparison.verdict == Verdict::NotSignificant)
        .collect();
    if found.is_empty() {
        return format!("every comparison made with {baseline} is significant or equivalent");
    }
    let names: Vec<&str> = found
        .iter()
        .map(|(entry, _)| entry.placement.as_str())
        .collect();
    let size = |comparison: &Comparison| comparison.difference.mean.abs();
    found.sort_by(|a, b| size(a.1).total_cmp(&size(b.1)));
    let median = found[found.len() / 2].1;
    let what = match names.len() {
        1 => "a difference of the observed size",
        _ => "a difference of the median observed size",
    };
    let nats = Decimals::of_size(size(median)).format(size(median));
    let required = required_seeds(
        median,
        analysis.rules.margin,
        &format!("{what} ({nats} nats)"),
    );
    format!(
        "not significantly different from {baseline} beyond the margin: {}, where {required}",
        list(&names)
    )
}

/// Returns the number of seeds required to detect a difference, as text.
pub(super) fn required_seeds(comparison: &Comparison, margin: f64, difference: &str) -> String {
    match comparison.seeds_for_significance {
        Some(count) => format!(
            "a new study with about {} would detect {difference} (adding seeds to this one until it is \
             significant would raise the false positive rate)",
            counts([count].into_iter(), "fresh seed")
        ),
        None if comparison.difference.mean == 0.0 => "the observed difference is 0".to_owned(),
        None if comparison.difference.mean.abs() <= margin => {
            "the observed difference is within the margin".to_owned()
        }
        None => format!(
            "more than {} would be needed to detect {difference}",
            seeds(stats::MAX_SEEDS)
        ),
    }
}

/// Returns a warning about best learning rates at an edge of the grid; empty if there are none.
fn edges(analysis: &Analysis) -> String {
    let at = |edge: Edge| -> Vec<&str> {
        let edged = analysis
            .placements
            .iter()
            .filter(|entry| entry.best.as_ref().and_then(|best| best.at_edge) == Some(edge));
        edged.map(|entry| entry.placement.as_str()).collect()
    };
    let part = |edge: Edge, word: &str| {
        let names = at(edge);
        (!names.is_empty()).then(|| format!("the {word} tried for {}", list(&names)))
    };
    let parts = [
        part(Edge::Lowest, "lowest"),
        part(Edge::Highest, "highest"),
        part(Edge::Only, "only one"),
    ];
    let parts: Vec<String> = (parts.into_iter()).flatten().collect();
    if parts.is_empty() {
        return String::new();
    }
    format!(
        "; warning: the best learning rate is {}: a better one may lie outside the grid",
        parts.join(" and ")
    )
}
