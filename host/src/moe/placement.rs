//! Which rank has which expert.

use std::cmp::Reverse;

/// Places experts where most of the tokens that choose them are, the same number on every rank.
///
/// `counts` `[ranks]` of `[num_experts]`: how often each rank's tokens choose each expert. The
/// largest counts are served first. Returns the expert at each place; the first
/// `num_experts / ranks` places are rank 0's. Within a rank experts are in order.
///
/// # Panics
/// Without ranks, or if the number of experts is no multiple of theirs.
pub fn by_origin(counts: &[Vec<u32>]) -> Vec<usize> {
    let (num_ranks, num_experts) = (counts.len(), counts[0].len());
    assert!(num_experts.is_multiple_of(num_ranks), "experts are dealt in equal numbers");
    let num_local = num_experts / num_ranks;
    let mut wishes: Vec<(usize, usize)> = (0..num_experts)
        .flat_map(|expert| (0..num_ranks).map(move |rank| (rank, expert)))
        .collect();
    wishes.sort_by_key(|&(rank, expert)| Reverse(counts[rank][expert]));
    let mut placed = vec![Vec::with_capacity(num_local); num_ranks];
    let mut is_placed = vec![false; num_experts];
    for (rank, expert) in wishes {
        if !is_placed[expert] && placed[rank].len() < num_local {
            placed[rank].push(expert);
            is_placed[expert] = true;
        }
    }
    placed.iter_mut().for_each(|experts| experts.sort_unstable());
    placed.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_go_to_the_rank_that_asks_for_them_most() {
        let counts = [vec![9, 0, 8, 0, 1, 0], vec![0, 7, 0, 6, 0, 5]];
        assert_eq!(by_origin(&counts), [0, 2, 4, 1, 3, 5]);
    }

    #[test]
    fn a_full_rank_leaves_the_rest_to_those_that_ask_next() {
        assert_eq!(by_origin(&[vec![9, 8, 7, 6], vec![0, 0, 0, 5]]), [0, 1, 2, 3]);
        let counts = [vec![9, 5, 7, 8], vec![0, 4, 0, 0], vec![0, 0, 3, 0], vec![0, 0, 1, 2]];
        assert_eq!(by_origin(&counts), [0, 1, 2, 3]);
    }

    #[test]
    fn one_rank_has_all() {
        assert_eq!(by_origin(&[vec![0, 3, 1]]), [0, 1, 2]);
    }
}
