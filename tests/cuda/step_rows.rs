//! Changes of page tables, and slots looked up in them.

use crate::common::Rng;
use crate::device::device;
use gpt_oss_puzzle::kernels::PAGE_TOKENS;

#[test]
fn tables_take_changes_and_rows_find_their_slots() {
    let Some(gpu) = device() else { return };
    let mut rng = Rng(1);
    for (layers, count, stride, rows, changed) in [
        (1, 1, 1, 1, 0),
        (2, 3, 5, 4, 7),
        (3, 8, 16, 40, 300),
        (1, 2, 3, 0, 5),
        (36, 64, 4, 64, 2304),
    ] {
        let what = format!("{layers} x {count} x {stride}, {rows} rows, {changed} changes");
        let entries = layers * count * stride;
        let before: Vec<u32> = (0..entries).map(|_| rng.below(1000) as u32).collect();
        let (mut want, mut changes) = (before.clone(), vec![changed as u32]);
        let first = rng.below(entries);
        for i in 0..changed {
            // Every entry once, then behind all of them.
            let index = if i < entries { (first + i) % entries } else { entries + i };
            let page = 1000 + i as u32;
            changes.extend([index as u32, page]);
            if let Some(entry) = want.get_mut(index) {
                *entry = page;
            }
        }
        // Room that is not used has no meaning.
        changes.extend([0, 77, 1 % entries as u32, 78]);
        // Some rows have no sequence, some are beyond their table.
        let mut positions: Vec<u32> =
            (0..rows).map(|_| rng.below(stride * PAGE_TOKENS) as u32).collect();
        let mut sequences: Vec<u32> = (0..rows).map(|_| rng.below(count) as u32).collect();
        for t in (0..rows).skip(1).step_by(3) {
            match t % 2 {
                0 => positions[t] = [(stride * PAGE_TOKENS) as u32, u32::MAX][t / 2 % 2],
                _ => sequences[t] = [count as u32, u32::MAX][t / 2 % 2],
            }
        }
        let slots_of = |tables: &[u32]| -> Vec<u64> {
            let slot = |layer: usize, t: usize| {
                let (position, sequence) = (positions[t] as usize, sequences[t] as usize);
                if sequence >= count || position / PAGE_TOKENS >= stride {
                    return u64::MAX;
                }
                let page = tables[(layer * count + sequence) * stride + position / PAGE_TOKENS];
                (page as usize * PAGE_TOKENS + position % PAGE_TOKENS) as u64
            };
            (0..layers).flat_map(|layer| (0..rows).map(move |t| slot(layer, t))).collect()
        };
        let [changes, positions, sequences] =
            [&changes, &positions, &sequences].map(|words| gpu.input(words, 1));
        let mut tables = Vec::new();
        let slots = gpu.guarded(layers * rows, 0, |slots| {
            tables = gpu.guarded_from(&before, 1, |tables| {
                let (positions, sequences) = (positions.view(), sequences.view());
                let changes = changes.view();
                gpu.cuda.step_rows(slots, tables, &changes, &positions, &sequences, layers, stride)
            });
            Ok(())
        });
        assert!(tables == want, "{what}: tables");
        assert!(slots == slots_of(&want), "{what}: slots");
    }
}
