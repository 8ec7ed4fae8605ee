//! Inflating a stream from its beginning, or from the middle.
//!
//! A deflate stream (RFC 1951) can be entered between two of its blocks, by whoever has the 32 KiB of
//! output before that place, and knows with which bit the block begins. flate2 offers neither, so
//! this is zlib's own interface (zlib.h; its examples/zran.c does the same), as the crate zlib-rs has it.

use std::io;

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd, inflateInit2_,
    inflatePrime, inflateReset, inflateSetDictionary, z_stream, zlibVersion,
};

/// Bytes of output that a block may refer to.
pub(crate) const WINDOW: usize = 32 << 10;

/// What `windowBits` of zlib is for a stream with gzip's header, and for one without any.
const GZIP: i32 = 15 + 16;
const RAW: i32 = -15;

/// A stream that is being inflated.
pub(crate) struct Inflater {
    stream: Box<z_stream>,
}

/// How far one call came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Progress {
    /// Bytes of the input that are used up.
    pub(crate) read: usize,
    /// Bytes of output.
    pub(crate) written: usize,
    /// Where it stopped.
    pub(crate) at: At,
}

/// A place in a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum At {
    /// Anywhere: there is no more input, or no more room.
    Somewhere,
    /// Between two blocks. So many bits of the last byte that was read belong to the next one.
    Block {
        /// 0 to 7.
        bits: u8,
    },
    /// Behind the end of the stream.
    End,
}

// SAFETY: the stream and what it points to belong to this value alone, and zlib ties neither to a
// thread; that two use it at a time is ruled out by `&mut` (zlib's FAQ, "Is zlib thread-safe?").
#[allow(unsafe_code)]
unsafe impl Send for Inflater {}

impl Inflater {
    /// A gzip member (RFC 1952), from its header on. Its checksum is verified.
    pub(crate) fn gzip() -> io::Result<Inflater> {
        Inflater::new(GZIP)
    }

    /// A stream that is entered between two blocks: behind `window`, with the last `bits` bits of the
    /// byte `before`.
    pub(crate) fn within(window: &[u8], bits: u8, before: u8) -> io::Result<Inflater> {
        let mut inflater = Inflater::new(RAW)?;
        let last = window
            .get(window.len().saturating_sub(WINDOW)..)
            .unwrap_or_default();
        if bits > 7 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if bits > 0 {
            let value = i32::from(before >> (8 - bits));
            // SAFETY: `inflateInit2_` has made the stream, and nobody else uses it.
            #[allow(unsafe_code)]
            let primed = unsafe { inflatePrime(&raw mut *inflater.stream, i32::from(bits), value) };
            check(primed)?;
        }
        if !last.is_empty() {
            let length = u32::try_from(last.len()).unwrap_or(0);
            // SAFETY: as above; zlib copies so many bytes, which are those of a slice.
            #[allow(unsafe_code)]
            let set =
                unsafe { inflateSetDictionary(&raw mut *inflater.stream, last.as_ptr(), length) };
            check(set)?;
        }
        Ok(inflater)
    }

    fn new(window_bits: i32) -> io::Result<Inflater> {
        let mut stream = Box::new(z_stream::default());
        let size = i32::try_from(size_of::<z_stream>()).unwrap_or(0);
        // SAFETY: the stream is one that nothing was done with yet; version and size are those of
        // the library that we are linked to.
        #[allow(unsafe_code)]
        let made = unsafe { inflateInit2_(&raw mut *stream, window_bits, zlibVersion(), size) };
        check(made)?;
        Ok(Inflater { stream })
    }

    /// Inflates until the input is used up, the output is full, the stream ends or, if `stops`,
    /// between two blocks.
    pub(crate) fn inflate(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        stops: bool,
    ) -> io::Result<Progress> {
        let available = |length| u32::try_from(length).unwrap_or(u32::MAX);
        let (input_len, output_len) = (available(input.len()), available(output.len()));
        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = input_len;
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = output_len;
        let flush = if stops { Z_BLOCK } else { Z_NO_FLUSH };
        // SAFETY: the stream was made by `inflateInit2_`. It reads from `input` and writes to
        // `output`, no more than their lengths, and in this call alone.
        #[allow(unsafe_code)]
        let result = unsafe { inflate(&raw mut *self.stream, flush) };
        if result != Z_STREAM_END && result != Z_BUF_ERROR {
            check(result)?;
        }
        let done = |all: u32, left: u32| usize::try_from(all - left).unwrap_or(0);
        let (read, written) = (
            done(input_len, self.stream.avail_in),
            done(output_len, self.stream.avail_out),
        );
        // zlib.h, inflate(): 128 at the end of a block, 64 in the last one, and the number of bits.
        let state = self.stream.data_type;
        let at = if result == Z_STREAM_END {
            At::End
        } else if stops && state & 128 != 0 && state & 64 == 0 {
            At::Block {
                bits: u8::try_from(state & 7).unwrap_or(0),
            }
        } else {
            At::Somewhere
        };
        Ok(Progress { read, written, at })
    }

    /// Begins anew, with another stream of the same sort.
    pub(crate) fn reset(&mut self) -> io::Result<()> {
        // SAFETY: the stream was made by `inflateInit2_`.
        #[allow(unsafe_code)]
        let reset = unsafe { inflateReset(&raw mut *self.stream) };
        check(reset)
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        // SAFETY: the stream was made by `inflateInit2_`, and is not used again.
        #[allow(unsafe_code)]
        let _ = unsafe { inflateEnd(&raw mut *self.stream) };
    }
}

/// zlib's results as errors.
fn check(result: i32) -> io::Result<()> {
    if result == Z_OK {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("no deflate stream, or a damaged one (zlib: {result})"),
        ))
    }
}
