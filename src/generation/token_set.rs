//! [`TokenSet`]: which tokens may come next.

/// A set of token ids, a bit for each up to the largest.
#[derive(Clone, Debug, Default)]
pub struct TokenSet(Vec<u32>);

impl TokenSet {
    /// The set of these bits: id `32 w + b` is in it when bit `b` of word `w` is 1.
    pub fn from_words(words: Vec<u32>) -> TokenSet {
        TokenSet(words)
    }

    /// Its bits, as [`TokenSet::from_words`] takes them.
    pub(super) fn words(&self) -> &[u32] {
        &self.0
    }

    /// Adds an id. Takes memory up to that id.
    pub fn insert(&mut self, id: u32) {
        let word = id as usize / 32;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (id % 32);
    }

    /// Leaves only what is in `other` too.
    pub fn intersect(&mut self, other: &TokenSet) {
        self.0.truncate(other.0.len());
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word &= other);
    }

    /// Whether an id is in it.
    pub fn contains(&self, id: u32) -> bool {
        self.0.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Whether no id is.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The id of a set of one.
    pub fn only(&self) -> Option<u32> {
        let mut words = (0..).zip(&self.0).filter(|(_, word)| **word != 0);
        match (words.next(), words.next()) {
            (Some((at, word)), None) if word.is_power_of_two() => {
                Some(32 * at + word.trailing_zeros())
            }
            _ => None,
        }
    }
}

impl FromIterator<u32> for TokenSet {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> TokenSet {
        let mut set = TokenSet::default();
        ids.into_iter().for_each(|id| set.insert(id));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::TokenSet;

    #[test]
    fn a_set_has_what_was_put_in() {
        let ids = [0, 31, 32, 77, 201_087];
        let set: TokenSet = ids.into_iter().collect();
        for id in (0..300).chain([201_086, 201_087, 201_088, u32::MAX]) {
            assert_eq!(set.contains(id), ids.contains(&id), "{id}");
        }
        assert!(!set.is_empty() && TokenSet::default().is_empty());
        assert_eq!(set.only(), None);
        for id in ids {
            assert_eq!(TokenSet::from_iter([id]).only(), Some(id));
        }
        assert_eq!(TokenSet::from_iter([5, 6]).only(), None);
        assert_eq!(TokenSet::default().only(), None);
        let mut both = set.clone();
        both.intersect(&[31, 33, 77, 300].into_iter().collect());
        assert!(both.contains(31) && both.contains(77) && !both.contains(33));
        assert!(!both.contains(0) && !both.contains(300) && !both.contains(201_087));
        assert!(TokenSet::from_words(vec![0, 1 << 3]).contains(35));
    }
}
