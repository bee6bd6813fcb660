//! Experts in the order in which tensor cores multiply them: moe_pack.cu.

use super::cudarc::driver::{CudaSlice, CudaView, PushKernelArg};
use super::moe_route::SLAB_COLUMNS;
use super::{Cuda, CudaError, THREADS, int};
use crate::kernels::{ExpertShape, MXFP4_BLOCK, elements};

/// Rows that are one piece: `TILE_ROWS_PACKED` in packed.cuh.
pub(super) const TILE_ROWS: usize = 16;

/// Bytes of a slab: `SLAB_BYTES` in packed.cuh.
pub(super) const SLAB_BYTES: usize = 1632;

/// 16-byte words of FP4 in a slab, a thread each.
const SLAB_WORDS: usize = 96;

/// Most slabs: a warp each of a block with one more.
pub(super) const MOST_SLABS: usize = 15;

/// Most experts: what pairs are sorted by, see [`Cuda::route`].
const MOST_EXPERTS: usize = 512;

/// How experts of a shape are packed, see packed.cuh.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    shape: ExpertShape,
}

impl Packing {
    /// `None` when they are not: rows are whole tiles of 16, columns whole blocks and at most 2,880.
    pub fn of(shape: ExpertShape) -> Option<Packing> {
        let ExpertShape { experts, rows, cols } = shape;
        let whole = rows.is_multiple_of(TILE_ROWS) && cols.is_multiple_of(MXFP4_BLOCK);
        let fits = cols <= MOST_SLABS * SLAB_COLUMNS && experts <= MOST_EXPERTS;
        (whole && fits && elements([experts, rows, cols]) > 0).then_some(Packing { shape })
    }

    /// Slabs of a tile.
    pub(super) fn slabs(self) -> usize {
        self.shape.cols.div_ceil(SLAB_COLUMNS)
    }

    /// Tiles of all experts.
    pub(super) fn tiles(self) -> usize {
        self.shape.experts * self.shape.rows / TILE_ROWS
    }

    /// Bytes of all experts: as many as stored, where columns are whole slabs.
    pub fn bytes(self) -> usize {
        elements([self.tiles(), self.slabs(), SLAB_BYTES])
    }

    /// Stored bytes of a tile: of blocks, of scales.
    pub(super) fn tile_bytes(self) -> (usize, usize) {
        let blocks = TILE_ROWS * self.shape.cols / MXFP4_BLOCK;
        (16 * blocks, blocks)
    }

    /// # Panics
    ///
    /// When stored blocks and scales have other lengths.
    pub(super) fn check(self, blocks: usize, scales: usize) {
        let (of_tile, scales_of_tile) = self.tile_bytes();
        let want = (of_tile * self.tiles(), scales_of_tile * self.tiles());
        assert_eq!((blocks, scales), want, "blocks, scales");
    }
}

impl Cuda {
    /// Stored experts that are on the device already, packed: `CudaExperts::Packed`. `None` when that
    /// cannot hold them: by their shape, or because a scale is outside 2^-119 ..= 2^1.
    ///
    /// # Panics
    ///
    /// When a length is not what the shape says.
    pub fn pack_experts(
        &self,
        blocks: &CudaView<'_, u8>,
        scales: &CudaView<'_, u8>,
        shape: ExpertShape,
    ) -> Result<Option<CudaSlice<u8>>, CudaError> {
        let Some(packing) = Packing::of(shape) else { return Ok(None) };
        packing.check(blocks.len(), scales.len());
        let failed = |e| CudaError::new("packing experts", e);
        let mut packed = self.scratch::<u8>(packing.bytes())?;
        let mut extreme = self.stream.alloc_zeros::<u32>(1).map_err(failed)?;
        self.pack(&mut packed, &mut extreme, blocks, scales, packing, 0)?;
        let extreme = self.stream.clone_dtoh(&extreme).map_err(failed)?;
        Ok((extreme == [0]).then_some(packed))
    }

    /// Packs whole tiles of `blocks` and `scales` to where the tiles from `first` on are. `extreme` becomes
    /// 1 when one of them has a scale that cannot be packed.
    pub(super) fn pack(
        &self,
        packed: &mut CudaSlice<u8>,
        extreme: &mut CudaSlice<u32>,
        blocks: &CudaView<'_, u8>,
        scales: &CudaView<'_, u8>,
        packing: Packing,
        first: usize,
    ) -> Result<(), CudaError> {
        let (of_tile, _) = packing.tile_bytes();
        let (tiles, slabs) = (blocks.len() / of_tile, packing.slabs());
        assert!(first + tiles <= packing.tiles() && scales.len() * 16 >= blocks.len(), "tiles");
        let tile = slabs * SLAB_BYTES;
        let mut to = packed.slice_mut(first * tile..(first + tiles) * tile);
        let (n, s, stride) = (tiles as u64, int(slabs), int(packing.shape.cols / MXFP4_BLOCK));
        let kernel = self.kernel("moe_pack", "moe_pack")?;
        let mut call = kernel.call();
        call.arg(&mut to).arg(extreme).arg(blocks).arg(scales).arg(&n).arg(&s).arg(&stride);
        let blocks = elements([tiles, slabs, SLAB_WORDS]).div_ceil(THREADS);
        // SAFETY: tiles end at `tiles`, of which `to` and the blocks and scales have as many; tiles are
        // whole words, from the beginning of an allocation.
        unsafe { kernel.launch(call, [blocks, 1, 1], THREADS) }
    }
}
