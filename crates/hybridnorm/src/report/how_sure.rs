//! Explanation of the terms of a verdict.

use super::format::count;
use crate::digits::percent;
use crate::lab::analysis::{Analysis, Verdict};

/// Explains the terms of a verdict and its confidence.
pub(super) fn how_sure(analysis: &Analysis) -> String {
    let rules = &analysis.rules;
    let compared: Vec<_> = analysis
        .placements
        .iter()
        .filter_map(|summary| summary.against.as_ref())
        .collect();
    let (Some(least), Some(most)) = (
        compared.iter().map(|comparison| comparison.pairs).min(),
        compared.iter().map(|comparison| comparison.pairs).max(),
    ) else {
        return format!(
            "How sure: nothing could be compared with {}, so nothing is said about which placement \
             is better.",
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
    let told = having(|verdict| matches!(verdict, Verdict::Better | Verdict::Worse));
    let equal = having(|verdict| verdict == Verdict::Equivalent);
    let mut text = format!(
        "How sure: {} of {} compared with {} in {pairs} of the same seed. A placement is called better \
         or worse where the whole {} interval{} lies more than {} nats to one side, and equivalent where \
         it lies within {} nats to either; better or worse {}, equivalent {}.",
        compared.len(),
        match analysis.comparisons() {
            1 => "1 placement is".to_owned(),
            all => format!("{all} placements are"),
        },
        rules.baseline,
        percent(1.0 - rules.alpha),
        together(analysis),
        rules.margin,
        rules.margin,
        is_or_are(told),
        is_or_are(equal),
    );
    if least < 5 {
        text.push_str(
            " With so few pairs only large and steady differences stand out: 'not distinguishable' \
             means not shown, not equal.",
        );
    }
    text
}

/// Returns a note that an interval holds jointly for several comparisons, if there are several.
fn together(analysis: &Analysis) -> String {
    match analysis.comparisons() {
        0 | 1 => String::new(),
        all => format!(", which holds for all {all} comparisons together,"),
    }
}

fn is_or_are(count: usize) -> String {
    match count {
        0 => "is none".to_owned(),
        1 => "is 1".to_owned(),
        count => format!("are {count}"),
    }
}
