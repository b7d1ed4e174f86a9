//! "Did you mean …": the nearest known word to one that is unknown, the same for request keys, configuration and D-Bus options.

use alloc::vec::Vec;

/// The word of `known` nearest to `word`, when near enough that the difference looks like a slip (at most a third of its letters).
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance * 3 <= candidate.chars().count().max(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many slips turn one word into the other: a letter too many, too few, wrong, or two neighbours swapped.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    // The row before the last, where a swap of two letters comes from.
    let mut before: Vec<usize> = Vec::new();
    let mut last_a = None;
    for (i, ca) in a.chars().take(64).enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut last_b = None;
        let mut next = Vec::with_capacity(row.len());
        next.push(left);
        for (j, (cb, up)) in b.iter().zip(row.iter().skip(1)).enumerate() {
            left = (diagonal + usize::from(ca != *cb)).min(left + 1).min(up + 1);
            if last_a == Some(*cb)
                && last_b == Some(ca)
                && let Some(swap) = j.checked_sub(1).and_then(|column| before.get(column))
            {
                left = left.min(swap + 1);
            }
            diagonal = *up;
            last_b = Some(*cb);
            next.push(left);
        }
        before = row;
        row = next;
        last_a = Some(ca);
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_slips_and_leaves_other_words_alone() {
        let known = ["type", "parent", "numa-node", "uuid"];
        assert_eq!(nearest("tpye", known), Some("type"));
        assert_eq!(nearest("typ", known), Some("type"));
        assert_eq!(nearest("numanode", known), Some("numa-node"));
        assert_eq!(nearest("numa_node", known), Some("numa-node"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("", known), None);
        for (a, b, slips) in [
            ("kitten", "sitting", 3),
            ("tpye", "type", 1),
            ("", "abc", 3),
            ("abc", "", 3),
            ("ab", "ba", 1),
            ("uuid", "uuid", 0),
        ] {
            assert_eq!(distance(a, b), slips, "{a} {b}");
            assert_eq!(distance(b, a), slips, "{b} {a}");
        }
    }
}
