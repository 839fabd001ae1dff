// What cuBLAS leaves to do on a GPU, in half and single precision. Feature maps are channels-last, as everywhere.

// ---- Convolution: the pixels under the kernel, side by side, for a product with the weights.

struct Window {
    // Of the input as stored, as the kernel sees it (nearest neighbours), and of the output.
    u32 height, width, seen_height, seen_width, out_height, out_width;
    u32 kernel, stride, top, left;
};

// `[batch, height, width, depth]` to `[pixels, kernel * kernel, depth]` for the output pixels from `first` on; a
// unit is as many bytes as divide a pixel's.
template <typename Unit>
__device__ __forceinline__ void gather(const Unit *input, Unit *output, u32 depth, u32 first, u32 total, Window w) {
    u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= total) return;
    u32 unit = index % depth, tap = index / depth % (w.kernel * w.kernel);
    u32 pixel = first + index / (depth * w.kernel * w.kernel);
    u32 x = pixel % w.out_width, y = pixel / w.out_width % w.out_height;
    u32 image = pixel / (w.out_width * w.out_height);
    // What lies before the first row or column wraps around and is too large.
    u32 row = y * w.stride + tap / w.kernel - w.top, column = x * w.stride + tap % w.kernel - w.left;
    Unit value = {};
    if (row < w.seen_height && column < w.seen_width) {
        row = row * w.height / w.seen_height;
        column = column * w.width / w.seen_width;
        value = input[((u64)(image * w.height + row) * w.width + column) * depth + unit];
    }
    output[index] = value;
}

#define GATHER(name, Unit)                                                                                            \
    extern "C" __global__ void name(const Unit *input, Unit *output, u32 depth, u32 first, u32 total, Window w) {     \
        gather<Unit>(input, output, depth, first, total, w);                                                          \
    }
GATHER(gather_16, uint4)
GATHER(gather_8, uint2)
GATHER(gather_4, u32)
GATHER(gather_2, u16)

// ---- What is added to a product: `[rows, channels]` of bias + shift + residual, each of which may be absent.

template <typename T, int N>
__device__ __forceinline__ void addends(const Pack<T, N> *bias, const Pack<T, N> *shift, const Pack<T, N> *residual,
                                        Pack<T, N> *output, u32 channels, u32 total) {
    u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= total) return;
    u32 channel = index % channels;
    float sum[N] = {};
    if (bias) {
        Pack<T, N> pack = bias[channel];
        for (int i = 0; i < N; i++) sum[i] += to_float(pack.values[i]);
    }
    if (shift) {
        Pack<T, N> pack = shift[channel];
        for (int i = 0; i < N; i++) sum[i] += to_float(pack.values[i]);
    }
    if (residual) {
        Pack<T, N> pack = residual[index];
        for (int i = 0; i < N; i++) sum[i] += to_float(pack.values[i]);
    }
    Pack<T, N> result;
    for (int i = 0; i < N; i++) result.values[i] = from_float<T>(sum[i]);
    output[index] = result;
}

// `[rows, 2 * channels]`, values before gates, to `[rows, channels]`: value * gelu(gate).
template <typename T, int N>
__device__ __forceinline__ void geglu(const Pack<T, N> *input, Pack<T, N> *output, u32 channels, u32 total) {
    u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= total) return;
    u64 row = index / channels, channel = index % channels;
    Pack<T, N> value = input[2 * row * channels + channel], gate = input[(2 * row + 1) * channels + channel];
    for (int i = 0; i < N; i++) {
        float x = to_float(gate.values[i]);
        float gelu = 0.5f * x * (1.0f + erff(x * 0.70710678f));
        value.values[i] = from_float<T>(to_float(value.values[i]) * gelu);
    }
    output[index] = value;
}

// ---- Norms.

// Mean and sum of squared deviations of each group in each chunk of rows: `[batch, chunks, groups, 2]`. A thread
// sums a pack of channels over every `blockDim.y`th row, around the image's first pixel.
template <typename T, int N>
__device__ __forceinline__ void group_moments(const Pack<T, N> *input, float *moments, u32 rows, u32 chunk_rows,
                                              u32 groups) {
    extern __shared__ float shared[];
    u32 packs = blockDim.x, channels = packs * N, lanes = blockDim.y;
    const Pack<T, N> *image = input + (u64)blockIdx.y * rows * packs;
    u32 first = blockIdx.x * chunk_rows, last = min(first + chunk_rows, rows);
    Pack<T, N> pivot = image[threadIdx.x];
    float sum[N] = {}, squares[N] = {};
    for (u32 row = first + threadIdx.y; row < last; row += lanes) {
        Pack<T, N> pack = image[(u64)row * packs + threadIdx.x];
        for (int i = 0; i < N; i++) {
            float x = to_float(pack.values[i]) - to_float(pivot.values[i]);
            sum[i] += x;
            squares[i] += x * x;
        }
    }
    float *sums = shared, *all_squares = shared + lanes * channels;
    for (int i = 0; i < N; i++) {
        sums[threadIdx.y * channels + threadIdx.x * N + i] = sum[i];
        all_squares[threadIdx.y * channels + threadIdx.x * N + i] = squares[i];
    }
    __syncthreads();
    float count = last - first;
    if (threadIdx.y == 0) {
        for (int i = 0; i < N; i++) {
            u32 channel = threadIdx.x * N + i;
            float total = 0, squared = 0;
            for (u32 lane = 0; lane < lanes; lane++) {
                total += sums[lane * channels + channel];
                squared += all_squares[lane * channels + channel];
            }
            sums[channel] = to_float(pivot.values[i]) + total / count;
            all_squares[channel] = squared - total * total / count;
        }
    }
    __syncthreads();
    u32 size = channels / groups;
    for (u32 group = threadIdx.y * packs + threadIdx.x; group < groups; group += packs * lanes) {
        float mean = 0, deviations = 0;
        for (u32 i = 0; i < size; i++) mean += sums[group * size + i];
        mean /= size;
        for (u32 i = 0; i < size; i++) {
            float apart = sums[group * size + i] - mean;
            deviations += all_squares[group * size + i] + count * apart * apart;
        }
        float *result = moments + 2 * ((u64)(blockIdx.y * gridDim.x + blockIdx.x) * groups + group);
        result[0] = mean;
        result[1] = deviations;
    }
}

// The norm by the moments of `chunks` chunks, with SiLU or without.
template <typename T, int N>
__device__ __forceinline__ void group_norm(const Pack<T, N> *input, const float *moments, const Pack<T, N> *gain,
                                           const Pack<T, N> *offset, Pack<T, N> *output, u32 rows, u32 chunk_rows,
                                           u32 chunks, u32 groups, float epsilon, u32 with_silu, u32 block_rows) {
    extern __shared__ float shared[];
    float *means = shared, *scales = shared + groups;
    u32 packs = blockDim.x, size = packs * N / groups;
    // A warp for each group, a lane for every 32nd chunk; threads beyond the last whole warp wait.
    u32 thread = threadIdx.y * packs + threadIdx.x, lane = thread % 32, warps = packs * blockDim.y / 32;
    for (u32 group = thread / 32; thread / 32 < warps && group < groups; group += warps) {
        const float *of_chunks = moments + 2 * ((u64)blockIdx.y * chunks * groups + group);
        float sum = 0, deviations = 0;
        for (u32 chunk = lane; chunk < chunks; chunk += 32)
            sum += of_chunks[2 * chunk * groups] * min(chunk_rows, rows - chunk * chunk_rows);
        float mean = warp_sum(sum) / rows;
        for (u32 chunk = lane; chunk < chunks; chunk += 32) {
            float count = min(chunk_rows, rows - chunk * chunk_rows);
            float apart = of_chunks[2 * chunk * groups] - mean;
            deviations += of_chunks[2 * chunk * groups + 1] + count * size * apart * apart;
        }
        deviations = warp_sum(deviations);
        if (lane == 0) {
            means[group] = mean;
            scales[group] = rsqrtf(deviations / ((float)rows * size) + epsilon);
        }
    }
    __syncthreads();
    float scale[N], shift[N];
    Pack<T, N> gains = gain[threadIdx.x], offsets = offset[threadIdx.x];
    for (int i = 0; i < N; i++) {
        u32 group = (threadIdx.x * N + i) / size;
        scale[i] = scales[group] * to_float(gains.values[i]);
        shift[i] = to_float(offsets.values[i]) - means[group] * scale[i];
    }
    u32 first = blockIdx.x * block_rows, last = min(first + block_rows, rows);
    u64 image = (u64)blockIdx.y * rows;
    for (u32 row = first + threadIdx.y; row < last; row += blockDim.y) {
        u64 at = (image + row) * packs + threadIdx.x;
        Pack<T, N> pack = input[at];
        for (int i = 0; i < N; i++) {
            float x = to_float(pack.values[i]) * scale[i] + shift[i];
            pack.values[i] = from_float<T>(with_silu ? silu(x) : x);
        }
        output[at] = pack;
    }
}

// A warp for each row of `packs` packs.
template <typename T, int N>
__device__ __forceinline__ void layer_norm(const Pack<T, N> *input, const Pack<T, N> *gain, const Pack<T, N> *offset,
                                           Pack<T, N> *output, u32 rows, u32 packs, float epsilon) {
    u32 row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const Pack<T, N> *from = input + (u64)row * packs;
    Pack<T, N> *to = output + (u64)row * packs;
    float sum = 0;
    for (u32 at = threadIdx.x; at < packs; at += 32) {
        Pack<T, N> pack = from[at];
        for (int i = 0; i < N; i++) sum += to_float(pack.values[i]);
    }
    float mean = warp_sum(sum) / (packs * N), squares = 0;
    for (u32 at = threadIdx.x; at < packs; at += 32) {
        Pack<T, N> pack = from[at];
        for (int i = 0; i < N; i++) {
            float x = to_float(pack.values[i]) - mean;
            squares += x * x;
        }
    }
    float scale = rsqrtf(warp_sum(squares) / (packs * N) + epsilon);
    for (u32 at = threadIdx.x; at < packs; at += 32) {
        Pack<T, N> pack = from[at], gains = gain[at], offsets = offset[at];
        for (int i = 0; i < N; i++) {
            float x = (to_float(pack.values[i]) - mean) * scale;
            pack.values[i] = from_float<T>(x * to_float(gains.values[i]) + to_float(offsets.values[i]));
        }
        to[at] = pack;
    }
}

// softmax(scale * x) of each row in place, a warp for each; maximum and sum in one pass (Milakov & Gimelshein 2018).
template <typename T>
__device__ __forceinline__ void softmax(T *scores, u32 rows, u32 length, u32 stride, float scale) {
    u32 index = blockIdx.x * blockDim.y + threadIdx.y;
    if (index >= rows) return;
    T *row = scores + (u64)index * stride;
    float largest = -infinity(), sum = 0;
    for (u32 at = threadIdx.x; at < length; at += 32) {
        float x = scale * to_float(row[at]), higher = fmaxf(largest, x);
        sum = sum * __expf(largest - higher) + __expf(x - higher);
        largest = higher;
    }
    float all = warp_max(largest);
    // A lane that saw nothing has no largest.
    float total = warp_sum(sum == 0 ? 0 : sum * __expf(largest - all));
    for (u32 at = threadIdx.x; at < length; at += 32)
        row[at] = from_float<T>(__expf(scale * to_float(row[at]) - all) / total);
}

// ---- All that takes packs, for both types, with packs of 16 bytes and of one value.

#define KERNELS(name, T, N)                                                                                           \
    extern "C" __global__ void addends_##name(const Pack<T, N> *bias, const Pack<T, N> *shift,                        \
                                              const Pack<T, N> *residual, Pack<T, N> *output, u32 channels,           \
                                              u32 total) {                                                            \
        addends<T, N>(bias, shift, residual, output, channels, total);                                                \
    }                                                                                                                 \
    extern "C" __global__ void geglu_##name(const Pack<T, N> *input, Pack<T, N> *output, u32 channels, u32 total) {   \
        geglu<T, N>(input, output, channels, total);                                                                  \
    }                                                                                                                 \
    extern "C" __global__ void group_moments_##name(const Pack<T, N> *input, float *moments, u32 rows, u32 chunk_rows, \
                                                    u32 groups) {                                                     \
        group_moments<T, N>(input, moments, rows, chunk_rows, groups);                                                \
    }                                                                                                                 \
    extern "C" __global__ void group_norm_##name(const Pack<T, N> *input, const float *moments,                       \
                                                 const Pack<T, N> *gain, const Pack<T, N> *offset, Pack<T, N> *output, \
                                                 u32 rows, u32 chunk_rows, u32 chunks, u32 groups, float epsilon,     \
                                                 u32 with_silu, u32 block_rows) {                                     \
        group_norm<T, N>(input, moments, gain, offset, output, rows, chunk_rows, chunks, groups, epsilon, with_silu,  \
                         block_rows);                                                                                 \
    }                                                                                                                 \
    extern "C" __global__ void layer_norm_##name(const Pack<T, N> *input, const Pack<T, N> *gain,                     \
                                                 const Pack<T, N> *offset, Pack<T, N> *output, u32 rows, u32 packs,   \
                                                 float epsilon) {                                                     \
        layer_norm<T, N>(input, gain, offset, output, rows, packs, epsilon);                                          \
    }
KERNELS(f16_8, f16, 8)
KERNELS(f16_1, f16, 1)
KERNELS(f32_4, float, 4)
KERNELS(f32_1, float, 1)

extern "C" __global__ void softmax_f16(f16 *scores, u32 rows, u32 length, u32 stride, float scale) {
    softmax<f16>(scores, rows, length, stride, scale);
}
extern "C" __global__ void softmax_f32(float *scores, u32 rows, u32 length, u32 stride, float scale) {
    softmax<float>(scores, rows, length, stride, scale);
}
