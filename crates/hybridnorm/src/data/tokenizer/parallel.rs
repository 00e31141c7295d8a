//! Cutting text, and working on many texts at once.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The text, cut within runs of white space so long that the patterns of tokenizers exhaust their
/// stack on them. Nothing else is cut.
pub(in crate::data) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    const LONGEST_RUN: usize = 1 << 16;
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut run = 0;
        let cut = rest.char_indices().find_map(|(at, c)| {
            run = if c.is_whitespace() { run + 1 } else { 0 };
            (run > LONGEST_RUN).then_some(at)
        });
        let (piece, after) = rest.split_at(cut.unwrap_or(rest.len()));
        rest = after;
        Some(piece)
    })
}

/// Applies `work` to every text on several threads; results come in the order of the texts.
pub(in crate::data) fn in_parallel<'t, T: Send>(
    texts: &[&'t str],
    threads: usize,
    work: impl Fn(&'t str) -> T + Sync,
) -> Vec<T> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
    .min(texts.len());
    if threads <= 1 {
        return texts.iter().map(|text| work(text)).collect();
    }
    let next = AtomicUsize::new(0);
    let mut done: Vec<(usize, T)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(text) = texts.get(index) else {
                            return mine;
                        };
                        mine.push((index, work(text)));
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| match worker.join() {
                Ok(mine) => mine,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    });
    done.sort_unstable_by_key(|&(index, _)| index);
    done.into_iter().map(|(_, result)| result).collect()
}
