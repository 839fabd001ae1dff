//! Rates of the kernels on SD 1.5's shapes, beside an f32 product of the `gemm` crate and `rten-gemm`'s products.
//!
//! `cargo test --release --test bench -- --ignored --nocapture --test-threads 1 kernels`
//!
//! `POCHADE_KERNEL=avx2` measures another instruction set than the best (rten-gemm and `gemm` choose theirs).
//! Candidates of one line take turns, so that a busy machine slows all of them; figures are medians.

use std::time::Instant;

use pochade::kernels::{
    Attention, Conv2d, Epilogue, GROUP, Gather, GroupNorm, Grouped, Isa, LayerNorm, PackedF32, PackedI8,
    Padding, Products, QuantizedRows, Winograd, WinogradWords, quantize_rows,
};
use rten_gemm::{BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmOptions, QuantParams};
use rten_tensor::prelude::*;
use rten_tensor::{NdTensor, NdTensorView};

/// Median seconds of each candidate over alternating runs.
fn medians<const N: usize>(mut candidates: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut times: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
    let begin = Instant::now();
    while times[0].len() < 5 || (begin.elapsed().as_secs_f64() < 1.5 && times[0].len() < 60) {
        for (candidate, times) in candidates.iter_mut().zip(&mut times) {
            let start = Instant::now();
            candidate();
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

fn floats(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i.wrapping_mul(2_654_435_761) >> 7 & 0xffff) as f32 / 32768.0 - 1.0).collect()
}

/// C = A B, 1024 x 1024 x 1024, by the `gemm` crate on all threads: the yardstick R.
struct Yardstick {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Yardstick {
    const GMACS: f64 = 1.073_741_824;

    fn new() -> Self {
        Self { a: floats(1 << 20), b: floats(1 << 20), c: vec![0.0; 1 << 20] }
    }

    #[allow(unsafe_code, reason = "the yardstick takes pointers")]
    fn run(&mut self) {
        let n = 1024;
        // SAFETY: three n x n row-major matrices.
        unsafe {
            gemm::gemm(
                n,
                n,
                n,
                self.c.as_mut_ptr(),
                1,
                n as isize,
                false,
                self.a.as_ptr(),
                1,
                n as isize,
                self.b.as_ptr(),
                1,
                n as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(0),
            );
        }
    }
}

/// A 3x3 convolution of `batch` square images.
fn convolution(batch: usize, side: usize) -> Conv2d {
    Conv2d {
        batch,
        height: side,
        width: side,
        kernel: 3,
        stride: 1,
        padding: Padding::all(1),
        enlarged: None,
    }
}

/// A product's shape: a 3x3 convolution of `batch` square images, or a linear layer over `rows` rows.
enum Shape {
    Conv { batch: usize, side: usize, depth: usize, out: usize },
    Linear { rows: usize, depth: usize, out: usize },
}

impl Shape {
    fn geometry(&self) -> (Gather, usize, usize, usize) {
        match *self {
            Shape::Conv { batch, side, depth, out } => {
                (Gather::conv2d(&convolution(batch, side)), 9, depth, out)
            }
            Shape::Linear { rows, depth, out } => (Gather::identity(rows), 1, depth, out),
        }
    }

    fn name(&self) -> String {
        match self {
            Shape::Conv { batch, side, depth, out } => {
                format!("conv {batch} x {side}x{side} {depth} -> {out}")
            }
            Shape::Linear { rows, depth, out } => format!("linear {rows} x {depth} -> {out}"),
        }
    }
}

fn shapes() -> Vec<Shape> {
    vec![
        Shape::Conv { batch: 2, side: 64, depth: 320, out: 320 },
        Shape::Conv { batch: 2, side: 32, depth: 640, out: 640 },
        Shape::Conv { batch: 2, side: 16, depth: 1280, out: 1280 },
        Shape::Conv { batch: 2, side: 8, depth: 1280, out: 1280 },
        Shape::Conv { batch: 1, side: 256, depth: 256, out: 256 },
        Shape::Linear { rows: 8192, depth: 320, out: 2560 },
        Shape::Linear { rows: 8192, depth: 1280, out: 320 },
        Shape::Linear { rows: 2048, depth: 640, out: 5120 },
        Shape::Linear { rows: 2048, depth: 640, out: 640 },
        Shape::Linear { rows: 512, depth: 1280, out: 1280 },
        Shape::Linear { rows: 154, depth: 768, out: 640 },
    ]
}

/// im2col of a channels-last image by row copies, all threads: what a plain product needs before it.
fn im2col<T: Copy + Default + Send + Sync>(side: usize, input: &[T], depth: usize, columns: &mut [T]) {
    use rayon::prelude::*;
    columns.par_chunks_mut(side * 9 * depth).enumerate().for_each(|(line, columns)| {
        let (image, y) = (line / side, line % side);
        for (x, columns) in columns.chunks_mut(9 * depth).enumerate() {
            for (tap, to) in columns.chunks_mut(depth).enumerate() {
                let (in_y, in_x) = ((y + tap / 3).wrapping_sub(1), (x + tap % 3).wrapping_sub(1));
                if in_y < side && in_x < side {
                    let pixel = (image * side + in_y) * side + in_x;
                    to.copy_from_slice(&input[pixel * depth..][..depth]);
                } else {
                    to.fill(T::default());
                }
            }
        }
    });
}

#[test]
#[ignore = "a benchmark"]
fn f32_products() {
    let isa = Isa::chosen().unwrap();
    let mut yardstick = Yardstick::new();
    let rten = GemmExecutor::<f32>::new();
    println!("\n{isa}; rten-gemm {}", rten.kernel_name());
    println!("{:34} {:>8} {:>8} {:>8} {:>7} {:>7}", "GMAC/s", "ours", "rten", "R", "/ rten", "/ R");
    for shape in shapes() {
        let (gather, taps, depth, out) = shape.geometry();
        let input = floats(gather.in_rows() * depth);
        let weight = floats(out * taps * depth);
        let bias = floats(out);
        let packed = PackedF32::pack(&weight, out, taps, depth, isa);
        let epilogue = Epilogue { bias: Some(&bias), ..Default::default() };
        let mut output = vec![0.0; gather.out_rows() * out];
        let mut other = output.clone();

        let b = NdTensor::from_data([out, taps * depth], weight.clone());
        let b = rten.prepack_b(b.view().transposed());
        let mut columns = vec![0.0; if taps == 9 { gather.out_rows() * 9 * depth } else { 0 }];
        let mut rten_product = || {
            if let Shape::Conv { side, .. } = shape {
                im2col(side, &input, depth, &mut columns);
            }
            let a = if taps == 9 { &columns } else { &input };
            let a = NdTensorView::from_data([gather.out_rows(), taps * depth], a.as_slice());
            let options = GemmOptions { bias: Some(BiasVector::Row(&bias)), ..Default::default() };
            rten.gemm(&mut other, GemmInputA::Unpacked(a), GemmInputB::Packed(&b), options).unwrap();
        };
        let [ours, theirs, yard] = medians([
            &mut || {
                packed.apply(&input, &gather, &epilogue, &mut output);
            },
            &mut rten_product,
            &mut || yardstick.run(),
        ]);
        let gmac = (gather.out_rows() * taps * depth * out) as f64 / 1e9;
        let (ours, theirs, yard) = (gmac / ours, gmac / theirs, Yardstick::GMACS / yard);
        println!(
            "{:34} {ours:8.1} {theirs:8.1} {yard:8.1} {:7.2} {:7.2}",
            shape.name(),
            ours / theirs,
            ours / yard
        );
    }
}

#[test]
#[ignore = "a benchmark"]
fn attention() {
    let isa = Isa::chosen().unwrap();
    let mut yardstick = Yardstick::new();
    println!("\n{:34} {:>9} {:>8} {:>8} {:>8} {:>7}", "attention", "ms", "GMAC/s", "words", "R", "words/R");
    for (batch, heads, head_dim, q_len, kv_len) in [
        (2, 8, 40, 4096, 4096),
        (2, 8, 80, 1024, 1024),
        (2, 8, 160, 256, 256),
        (2, 8, 40, 4096, 77),
        (1, 1, 512, 4096, 4096),
    ] {
        let sizes = Attention::dense(batch, heads, head_dim, q_len, kv_len);
        let q = floats(batch * q_len * heads * head_dim);
        let k = floats(batch * kv_len * heads * head_dim);
        let v = floats(batch * kv_len * heads * head_dim);
        let (mut output, mut from_words) = (vec![0.0; q.len()], vec![0.0; q.len()]);
        let [ours, words, yard] = medians([
            &mut || {
                sizes.apply(isa, Products::Floats, [&q, &k, &v], &mut output);
            },
            &mut || {
                sizes.apply(isa, Products::Words, [&q, &k, &v], &mut from_words);
            },
            &mut || yardstick.run(),
        ]);
        let gmac = (2 * batch * heads * head_dim * q_len * kv_len) as f64 / 1e9;
        let name = format!("{batch} x {heads} heads x {head_dim}, {q_len} over {kv_len}");
        let (rate, words, yard) = (gmac / ours, gmac / words, Yardstick::GMACS / yard);
        println!("{name:34} {:9.2} {rate:8.1} {words:8.1} {yard:8.1} {:7.2}", ours * 1e3, words / yard);
    }
}

#[test]
#[ignore = "a benchmark"]
fn row_operations() {
    let isa = Isa::chosen().unwrap();
    println!("\n{:34} {:>9} {:>9} {:>9}", "rows", "f32 ms", "u8 ms", "copy ms");
    for (images, pixels, channels) in [(2, 4096, 320), (2, 1024, 640), (2, 256, 1280), (1, 1 << 18, 128)] {
        let input = floats(images * pixels * channels);
        let (weight, bias) = (floats(channels), floats(channels));
        let mut output = vec![0.0; input.len()];
        let mut copy = vec![0.0; input.len()];
        let mut quantized = QuantizedRows::default();
        let group = GroupNorm { groups: 32, epsilon: 1e-5, weight: &weight, bias: &bias, silu: true };
        let layer = LayerNorm { epsilon: 1e-5, weight: &weight, bias: &bias };
        let mut print = |name: &str, float: &mut dyn FnMut(), byte: &mut dyn FnMut()| {
            let [float, byte, copied] = medians([float, byte, &mut || copy.copy_from_slice(&input)]);
            let name = format!("{name} {images} x {pixels} x {channels}");
            println!("{name:34} {:9.3} {:9.3} {:9.3}", float * 1e3, byte * 1e3, copied * 1e3);
        };
        print(
            "group norm, SiLU",
            &mut || {
                group.apply(isa, &input, images, &mut output);
            },
            &mut || {
                group.apply(isa, &input, images, &mut quantized);
            },
        );
        print(
            "layer norm",
            &mut || {
                layer.apply(isa, &input, &mut output);
            },
            &mut || {
                layer.apply(isa, &input, &mut quantized);
            },
        );
    }
}

#[test]
#[ignore = "a benchmark"]
fn i8_products() {
    let isa = Isa::chosen().unwrap();
    let mut yardstick = Yardstick::new();
    let rten = GemmExecutor::<u8, i8, i32>::new();
    println!("\n{isa}; rten-gemm {}", rten.kernel_name());
    println!("{:34} {:>8} {:>8} {:>8} {:>7} {:>7}", "GMAC/s", "ours", "rten", "R", "/ rten", "/ R");
    for shape in shapes() {
        let (gather, taps, depth, out) = shape.geometry();
        let rows = gather.out_rows();
        let mut input = QuantizedRows::default();
        quantize_rows(isa, &floats(gather.in_rows() * depth), depth, &mut input);
        let bytes: Vec<u8> = (0..gather.in_rows()).flat_map(|row| input.row(row)).collect();
        let weight: Vec<i8> = floats(out * taps * depth).iter().map(|w| (w * 127.0) as i8).collect();
        let (bias, scales) = (floats(out), floats(out));
        let packed = PackedI8::pack(&weight, &scales, out, taps, depth, isa);
        let epilogue = Epilogue { bias: Some(&bias), ..Default::default() };
        let mut output = vec![0.0; rows * out];

        let b = NdTensor::from_data([out, taps * depth], weight.clone());
        let b = rten.prepack_b(b.view().transposed());
        let mut columns = vec![0; if taps == 9 { rows * 9 * depth } else { 0 }];
        let mut sums = vec![0i32; rows * out];
        let mut float = vec![0.0; rows * out];
        let zero_points = vec![128u8; rows];
        let mut rten_product = || {
            use rayon::prelude::*;
            if let Shape::Conv { side, .. } = shape {
                im2col(side, &bytes, depth, &mut columns);
            }
            let a = if taps == 9 { &columns } else { &bytes };
            let a = NdTensorView::from_data([rows, taps * depth], a.as_slice());
            let options =
                GemmOptions { a_quant: Some(QuantParams { zero_point: &zero_points }), ..Default::default() };
            rten.gemm(&mut sums, GemmInputA::Unpacked(a), GemmInputB::Packed(&b), options).unwrap();
            // Scales and bias, which ours includes; rten has one scale per row for all taps.
            float.par_chunks_mut(out).zip(sums.par_chunks(out)).enumerate().for_each(|(row, (to, sums))| {
                let scale = input.scales()[row % input.rows()];
                for (((to, sum), weight), bias) in to.iter_mut().zip(sums).zip(&scales).zip(&bias) {
                    *to = *sum as f32 * scale * weight + bias;
                }
            });
        };
        let [ours, theirs, yard] = medians([
            &mut || {
                packed.apply(&input, &gather, &epilogue, &mut output);
            },
            &mut rten_product,
            &mut || yardstick.run(),
        ]);
        let gmac = (rows * taps * depth * out) as f64 / 1e9;
        let (ours, theirs, yard) = (gmac / ours, gmac / theirs, Yardstick::GMACS / yard);
        println!(
            "{:34} {ours:8.1} {theirs:8.1} {yard:8.1} {:7.2} {:7.2}",
            shape.name(),
            ours / theirs,
            ours / yard
        );
    }
}

/// What unpacking weights of four bits adds to products of bytes, and of words by Winograd's algorithm.
#[test]
#[ignore = "a benchmark"]
fn four_bit_products() {
    let isa = Isa::chosen().unwrap();
    println!("\n{isa}; milliseconds");
    println!("{:34} {:>9} {:>9} {:>7}", "", "8 bits", "4 bits", "ratio");
    for shape in shapes() {
        let (gather, taps, depth, out) = shape.geometry();
        let floats = floats(gather.in_rows().max(out * taps) * depth);
        let bytes: Vec<i8> = floats[..out * taps * depth].iter().map(|w| (w * 127.0) as i8).collect();
        let halves: Vec<i8> = bytes.iter().map(|byte| byte >> 4).collect();
        let scales = vec![0.01; out];
        let groups = vec![0.1; out * taps * depth.div_ceil(GROUP)];
        let grouped = Grouped { values: &halves, scales: &groups };
        let mut input = QuantizedRows::default();
        quantize_rows(isa, &floats[..gather.in_rows() * depth], depth, &mut input);
        let epilogue = Epilogue::default();
        let mut outputs = [vec![0.0; gather.out_rows() * out], vec![0.0; gather.out_rows() * out]];
        let [first, second] = &mut outputs;
        let (eight, four) = (
            PackedI8::pack(&bytes, &scales, out, taps, depth, isa),
            PackedI8::pack_grouped(grouped, out, taps, depth, isa),
        );
        let mut run_eight = || {
            eight.apply(&input, &gather, &epilogue, &mut first[..]);
        };
        let mut run_four = || {
            four.apply(&input, &gather, &epilogue, &mut second[..]);
        };
        let times = medians([&mut run_eight, &mut run_four]);
        print_ratio(&shape.name(), times);
        let Shape::Conv { batch, side, .. } = shape else { continue };
        let conv = convolution(batch, side);
        let input = &floats[..batch * side * side * depth];
        let (eight, four) = (
            WinogradWords::of_i8(&bytes, scales.clone(), out, depth, isa),
            WinogradWords::of_grouped(grouped, out, depth, isa),
        );
        let mut run_eight = || {
            eight.apply(input, &conv, &epilogue, &mut first[..]);
        };
        let mut run_four = || {
            four.apply(input, &conv, &epilogue, &mut second[..]);
        };
        let times = medians([&mut run_eight, &mut run_four]);
        print_ratio("  by Winograd's algorithm", times);
    }
}

fn print_ratio(name: &str, [eight, four]: [f64; 2]) {
    println!("{name:34} {:9.2} {:9.2} {:7.3}", eight * 1e3, four * 1e3, four / eight);
}

#[test]
#[ignore = "a benchmark"]
fn gated_products() {
    let isa = Isa::chosen().unwrap();
    println!("\n{isa}; int8, milliseconds");
    println!("{:34} {:>9} {:>9} {:>9}", "linear, both halves", "plain", "gated", "ratio");
    for (rows, depth, out) in [(8192, 320, 1280), (2048, 640, 2560), (512, 1280, 5120)] {
        let mut input = QuantizedRows::default();
        quantize_rows(isa, &floats(rows * depth), depth, &mut input);
        let weight: Vec<i8> = floats(2 * out * depth).iter().map(|w| (w * 127.0) as i8).collect();
        let (bias, scales) = (floats(2 * out), floats(2 * out));
        let epilogue = Epilogue { bias: Some(&bias), ..Default::default() };
        let gather = Gather::identity(rows);
        let plain = PackedI8::pack(&weight, &scales, 2 * out, 1, depth, isa);
        let gated = PackedI8::pack_gated(&weight, &scales, out, depth, isa);
        let (mut wide, mut narrow) = (vec![0.0; rows * 2 * out], vec![0.0; rows * out]);
        let [ungated, gated] = medians([
            &mut || {
                plain.apply(&input, &gather, &epilogue, &mut wide);
            },
            &mut || {
                gated.apply(&input, &gather, &epilogue, &mut narrow);
            },
        ]);
        let name = format!("{rows} x {depth} -> {out}");
        println!("{name:34} {:9.2} {:9.2} {:9.2}", ungated * 1e3, gated * 1e3, ungated / gated);
    }
}

#[test]
#[ignore = "a benchmark"]
fn winograd() {
    let isa = Isa::chosen().unwrap();
    let mut yardstick = Yardstick::new();
    println!("\n{isa}; GMAC/s count the plain convolution's multiplications");
    println!(
        "{:34} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "GMAC/s", "winograd", "words", "of int8", "indirect", "R"
    );
    for (side, upsample, depth, out) in [
        (16, 1, 1280, 1280),
        (64, 1, 320, 320),
        (64, 1, 512, 512),
        (128, 1, 512, 512),
        (128, 2, 512, 512),
        (256, 1, 512, 256),
        (256, 1, 256, 256),
        (256, 2, 256, 256),
        (512, 1, 256, 128),
        (512, 1, 128, 128),
    ] {
        let (height, width) = (side, side);
        let enlarged = (upsample > 1).then_some((upsample * height, upsample * width));
        let conv =
            Conv2d { batch: 1, height, width, kernel: 3, stride: 1, padding: Padding::all(1), enlarged };
        let gather = Gather::conv2d(&conv);
        let input = floats(side * side * depth);
        let weight = floats(out * 9 * depth);
        let bias = floats(out);
        let epilogue = Epilogue { bias: Some(&bias), ..Default::default() };
        let plain = PackedF32::pack(&weight, out, 9, depth, isa);
        let mut output = vec![0.0; gather.out_rows() * out];
        let mut other = output.clone();
        let int8: Vec<i8> = weight.iter().map(|w| (w * 127.0) as i8).collect();
        let words = WinogradWords::of_f32(&weight, out, depth, isa);
        let words_of_int8 = WinogradWords::of_i8(&int8, vec![1.0 / 127.0; out], out, depth, isa);
        let layer = Winograd::new(weight, out, depth, isa);
        let (mut third, mut fourth) = (output.clone(), output.clone());
        let [ours, words, words_of_int8, indirect, yard] = medians([
            &mut || {
                layer.apply(&input, &conv, &epilogue, &mut output);
            },
            &mut || {
                words.apply(&input, &conv, &epilogue, &mut third);
            },
            &mut || {
                words_of_int8.apply(&input, &conv, &epilogue, &mut fourth);
            },
            &mut || {
                plain.apply(&input, &gather, &epilogue, &mut other);
            },
            &mut || yardstick.run(),
        ]);
        let gmac = (gather.out_rows() * 9 * depth * out) as f64 / 1e9;
        let name = format!("{side}x{side} x {upsample}, {depth} -> {out}");
        println!(
            "{name:34} {:8.1} {:8.1} {:8.1} {:8.1} {:8.1}",
            gmac / ours,
            gmac / words,
            gmac / words_of_int8,
            gmac / indirect,
            Yardstick::GMACS / yard
        );
    }
}
