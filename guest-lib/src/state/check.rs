//! Check words: they tell whether a stray write has changed what they are made of.

/// Of words, and of where they belong.
pub(crate) fn check_word(place: u64, words: impl IntoIterator<Item = u64>) -> u64 {
    let mix = |hash: u64, word: u64| {
        (hash ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    };
    words.into_iter().fold(mix(!place, 1), mix)
}
