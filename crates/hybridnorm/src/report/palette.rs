//! Colour, symbol and dash pattern of each placement, the same in every chart.
//!
//! The eight colours have a contrast ratio of at least 3 with the page and an OKLab distance of at least 0.1
//! under protanopia, deuteranopia and tritanopia, in light and dark mode.

use std::fmt::Write as _;

use plotly::common::{DashType, MarkerSymbol};

use super::document::Document;
use super::run::ReportedRun;

/// Colours on a light page.
const LIGHT: [&str; 8] = [
    "#3322cc", "#8a2c04", "#24805f", "#e0339f", "#2391ee", "#a39208", "#551a78", "#202124",
];

/// Colours on a dark page.
const DARK: [&str; 8] = [
    "#447ff5", "#de5a18", "#98ee70", "#f684aa", "#3cbcf6", "#c8b21a", "#ab60a8", "#e6e6e8",
];

/// Equally spaced stops of the colour scale of heat maps (Viridis).
pub(super) const SCALE: [&str; 9] = [
    "#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30",
    "#fde725",
];

/// SVG paths of the shapes, in a box from -4 to 4, in the order of [`symbol`].
const SHAPES: [&str; 8] = [
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-4.8L4.8 0 0 4.8-4.8 0z",
    "M0-4.4L4.6 3.6h-9.2z",
    "M0 4.4L-4.6-3.6h9.2z",
    "M-1.6-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z",
    "M0-4.6L4.4-1.4 2.7 3.8h-5.4L-4.4-1.4z",
    "M0-5L1.4-2.4h3.2L3.1 0l1.5 2.4H1.4L0 5-1.4 2.4h-3.2L-3.1 0l-1.5-2.4h3.2z",
];

/// Placements of a document in the order of their colours.
#[derive(Debug, Clone, Default)]
pub(super) struct PlacementStyles<'a>(Vec<&'a str>);

impl<'a> PlacementStyles<'a> {
    /// Collects the placements in the order of the analyses, then of the runs, then of the probe.
    pub(super) fn new(document: &'a Document) -> Self {
        let analyses = (document.groups.iter())
            .flat_map(|group| &group.analysis.placements)
            .map(|summary| summary.placement.as_str());
        let runs = document.runs.iter().map(ReportedRun::label);
        let probe = (document.probe.iter())
            .flat_map(|probe| &probe.placements)
            .map(|placement| placement.placement.as_str());
        let mut names = Vec::new();
        for name in analyses.chain(runs).chain(probe) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Self(names)
    }

    /// Returns the number of placements.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the index of the style of a placement.
    pub(super) fn style(&self, name: &str) -> usize {
        (self.0.iter())
            .position(|known| *known == name)
            .unwrap_or(self.0.len())
    }
}

/// Returns the colour of a style, as a CSS variable that the page sets for light, dark and print.
pub(super) fn color(style: usize) -> String {
    format!("var(--s{})", style % LIGHT.len())
}

/// Returns the shape of a style's markers. Styles of the same colour have different shapes.
pub(super) fn symbol(style: usize, filled: bool) -> MarkerSymbol {
    use MarkerSymbol as S;
    let (full, open) = match shape(style) {
        0 => (S::Circle, S::CircleOpen),
        1 => (S::Square, S::SquareOpen),
        2 => (S::Diamond, S::DiamondOpen),
        3 => (S::TriangleUp, S::TriangleUpOpen),
        4 => (S::TriangleDown, S::TriangleDownOpen),
        5 => (S::Cross, S::CrossOpen),
        6 => (S::Pentagon, S::PentagonOpen),
        _ => (S::Hexagram, S::HexagramOpen),
    };
    if filled { full } else { open }
}

/// Returns the dash pattern of a style's lines.
pub(super) fn dash(style: usize) -> DashType {
    match pattern(style) {
        0 => DashType::Solid,
        1 => DashType::Dash,
        2 => DashType::Dot,
        3 => DashType::LongDash,
        4 => DashType::DashDot,
        _ => DashType::LongDashDot,
    }
}

/// Returns the legend swatch of a style: line and marker, as SVG.
pub(super) fn swatch(style: usize) -> String {
    let dashes = match pattern(style) {
        0 => "",
        1 => " stroke-dasharray=\"5 3\"",
        2 => " stroke-dasharray=\"1.5 2.5\"",
        3 => " stroke-dasharray=\"8 3\"",
        4 => " stroke-dasharray=\"5 2 1.5 2\"",
        _ => " stroke-dasharray=\"8 2 1.5 2\"",
    };
    format!(
        "<svg class=\"mark s{}\" viewBox=\"-14 -6 28 12\" width=\"28\" height=\"12\" \
         aria-hidden=\"true\" focusable=\"false\"><path d=\"M-14 0H14\"{dashes}/><path \
         d=\"{}\"/></svg>",
        style % LIGHT.len(),
        SHAPES[shape(style)]
    )
}

/// Returns CSS rules that set the colours: light, dark if the reader prefers it, and light again for
/// print.
pub(super) fn style_sheet() -> String {
    let mut css = String::new();
    let _ = writeln!(css, ":root {{{}}}", variables(&LIGHT));
    let _ = writeln!(
        css,
        "@media screen and (prefers-color-scheme: dark) {{ :root:not(.printing) {{{}}} }}",
        variables(&DARK)
    );
    for style in 0..LIGHT.len() {
        let _ = writeln!(css, ".s{style} {{ color: var(--s{style}); }}");
    }
    for (stop, color) in SCALE.iter().enumerate() {
        let _ = writeln!(css, ".stop{stop} {{ background: {color}; }}");
    }
    css
}

fn variables(colors: &[&str]) -> String {
    (colors.iter().enumerate())
        .map(|(style, color)| format!(" --s{style}: {color};"))
        .collect()
}

fn shape(style: usize) -> usize {
    (style + style / LIGHT.len()) % SHAPES.len()
}

/// Returns the dash pattern of a style; the two repeated patterns belong to clearly different colours.
fn pattern(style: usize) -> usize {
    [0, 1, 2, 3, 4, 5, 1, 3][shape(style)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifty_styles_differ_in_colour_or_shape() {
        let mut pairs: Vec<(usize, usize)> =
            (0..50).map(|style| (style % 8, shape(style))).collect();
        pairs.sort_unstable();
        pairs.dedup();
        assert_eq!(pairs.len(), 50);
    }

    #[test]
    fn the_style_sheet_sets_every_colour_twice() {
        let css = style_sheet();
        for style in 0..LIGHT.len() {
            assert_eq!(css.matches(&format!("--s{style}: #")).count(), 2);
        }
    }
}
