//! Explanation of the terms of a verdict.

use super::format::count;
use crate::format_number::percent;
use crate::lab::analysis::{Analysis, Verdict};

/// Returns a paragraph that explains the terms of the verdicts and their confidence level.
pub(super) fn confidence_note(analysis: &Analysis) -> String {
    let rules = &analysis.rules;
    let compared: Vec<_> = analysis
        .placements
        .iter()
        .filter_map(|summary| summary.comparison.as_ref())
        .collect();
    let (Some(least), Some(most)) = (
        compared.iter().map(|comparison| comparison.pairs).min(),
        compared.iter().map(|comparison| comparison.pairs).max(),
    ) else {
        return format!(
            "Confidence: no placement could be compared with the baseline {}, so there are no verdicts.",
            rules.baseline
        );
    };
    let pairs = match least == most {
        true => count(least, "pair", "pairs"),
        false => format!("{least} to {most} pairs"),
    };
    let having = |wanted: fn(Verdict) -> bool| {
        let all = compared.iter().map(|comparison| comparison.verdict);
        all.filter(|&verdict| wanted(verdict)).count()
    };
    let significant = having(|verdict| matches!(verdict, Verdict::Better | Verdict::Worse));
    let equal = having(|verdict| verdict == Verdict::Equivalent);
    let mut text = format!(
        "Confidence: {} of {} compared with {} by paired differences over {pairs} of runs with the same \
         seed. A placement is better or worse if its whole {} confidence interval{} lies beyond the margin of {} nats, and equivalent if it \
         lies within ±{} nats; {} are better or worse, {} are equivalent.",
        compared.len(),
        match analysis.n_planned_comparisons() {
            1 => "1 placement is".to_owned(),
            all => format!("{all} placements are"),
        },
        rules.baseline,
        percent(1.0 - rules.alpha),
        simultaneous_note(analysis),
        rules.margin,
        rules.margin,
        significant,
        equal,
    );
    if least < 5 {
        text.push_str(
            " With so few seeds, only differences that are large relative to the seed noise are significant: 'not \
             significant' does not mean equal.",
        );
    }
    text
}

/// Returns a note that an interval holds jointly for several comparisons, if there are several.
fn simultaneous_note(analysis: &Analysis) -> String {
    match analysis.n_planned_comparisons() {
        0 | 1 => String::new(),
        all => format!(" (simultaneous for all {all} comparisons)"),
    }
}
