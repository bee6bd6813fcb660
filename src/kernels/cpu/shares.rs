//! The views through which the tasks of one call write one output together.

use std::marker::PhantomData;
use std::ops::Range;

/// A slice that the tasks of one call write in disjoint parts.
#[derive(Clone, Copy)]
pub(super) struct Shares<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Shares` hands out parts of a `&mut [T]`; its unsafe methods demand that parts in use at the
// same time are disjoint, so each element is touched by one thread at a time.
unsafe impl<T: Send> Sync for Shares<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shares<'_, T> {}

impl<'a, T> Shares<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Shares<'a, T> {
        Shares { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    ///
    /// No other part in use overlaps `range`.
    #[allow(clippy::mut_from_ref)] // that is the purpose of this type
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part out of range");
        // SAFETY: in range by the assertion; unique by this method's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Columns `columns` of the rows `rows` of a matrix with `stride` columns.
    ///
    /// # Safety
    ///
    /// No other part in use overlaps these elements.
    pub(super) unsafe fn columns(
        &self,
        stride: usize,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Columns<'a, T> {
        let end = rows.end.checked_mul(stride);
        assert!(rows.start <= rows.end && end.is_some_and(|e| e <= self.len), "rows out of range");
        assert!(columns.start <= columns.end && columns.end <= stride, "columns out of range");
        // SAFETY: `rows.start · stride + columns.start ≤ rows.end · stride ≤ len` unless there are no
        // rows; then the pointer is not used, and wrapping_add never dereferences.
        let start = self.start.wrapping_add(rows.start * stride + columns.start);
        Columns { start, stride, rows: rows.len(), width: columns.len(), borrow: PhantomData }
    }
}

/// Some columns of a row-major matrix, the other columns of which belong to other tasks.
pub(super) struct Columns<'a, T> {
    start: *mut T,
    stride: usize,
    rows: usize,
    width: usize,
    borrow: PhantomData<&'a mut [T]>,
}

impl<'a, T> Columns<'a, T> {
    /// A whole matrix of `width` columns.
    pub(super) fn whole(matrix: &'a mut [T], width: usize) -> Columns<'a, T> {
        let rows = matrix.len() / width;
        let start = matrix.as_mut_ptr();
        Columns { start, stride: width, rows, width, borrow: PhantomData }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// This view's part of row `row`.
    #[inline(always)]
    pub(super) fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row out of range");
        // SAFETY: the row is inside the matrix, its columns belong to this view alone, and `&mut self`
        // keeps two rows from being borrowed at once.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.width) }
    }
}

impl Columns<'_, f32> {
    /// Writes the sums of a tile of R columns and N rows, from `column` and `row` on; `bias` has one
    /// value for each column of this view.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // indices say which of the tile
    #[allow(dead_code)] // The scalar tier, elsewhere than on x86 the only one, has no tiles.
    pub(super) fn put<const R: usize, const N: usize>(
        &mut self,
        row: usize,
        column: usize,
        sums: [[f32; N]; R],
        bias: Option<&[f32]>,
    ) {
        for n in 0..N {
            let out = &mut self.row(row + n)[column..column + R];
            for r in 0..R {
                out[r] = sums[r][n] + bias.map_or(0.0, |b| b[column + r]);
            }
        }
    }
}
