// Attention whose scores never leave the registers (FlashAttention-2, Dao 2023), in half precision; the size of its
// heads, MOST, is known when it is compiled. It multiplies with the matrix units of sm_80 on.

struct Strides {
    // In values: from an item of the batch to the next, from a row to the next; heads lie side by side.
    u64 query_item, query_row, key_item, key_row, value_item, value_row;
};

__device__ __forceinline__ void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 halves(float low, float high) {
    u32 result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}

__device__ __forceinline__ float power_of_two(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// Four 8x8 matrices; the lanes name the rows, eight lanes a matrix.
__device__ __forceinline__ void read_matrices(u32 (&result)[4], const f16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                 : "r"((u32)__cvta_generic_to_shared(row)));
}

__device__ __forceinline__ void read_transposed(u32 (&result)[4], const f16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                 : "r"((u32)__cvta_generic_to_shared(row)));
}

// For heads of `size` values, a multiple of 8 up to MOST. A warp has 16 queries, a block of four 64, and takes 64 keys
// at a time.
extern "C" __global__ void __launch_bounds__(128)
    flash(const f16 *query, const f16 *key, const f16 *value, f16 *output, u32 queries, u32 keys, u32 size, float scale,
          Strides strides) {
    constexpr int SIZE = (MOST + 15) / 16 * 16;
    constexpr int STEPS = SIZE / 16, TILES = MOST / 8, PITCH = SIZE + 8, KEYS = 64;
    __shared__ alignas(16) f16 key_tile[KEYS * PITCH], value_tile[KEYS * PITCH];
    u32 lane = threadIdx.x % 32, head = blockIdx.y, item = blockIdx.z;
    u32 channels = gridDim.y * size, pair = lane % 4 * 2, matrix = lane / 8;
    u32 first = blockIdx.x * 64 + threadIdx.x / 32 * 16 + lane / 4;
    query += item * strides.query_item + head * size;
    key += item * strides.key_item + head * size;
    value += item * strides.value_item + head * size;

    u32 fragments[STEPS][4];
    for (int step = 0; step < STEPS; step++)
        for (int part = 0; part < 4; part++) {
            u32 row = first + part % 2 * 8, column = step * 16 + part / 2 * 8 + pair;
            bool inside = row < queries && column < size;
            fragments[step][part] = inside ? *(const u32 *)&query[row * strides.query_row + column] : 0;
        }

    float result[TILES][4] = {};
    float largest[2] = {-infinity(), -infinity()}, total[2] = {};
    for (u32 base = 0; base < keys; base += KEYS) {
        __syncthreads();
        for (u32 at = threadIdx.x; at < KEYS * SIZE / 8; at += 128) {
            u32 row = at / (SIZE / 8), column = at % (SIZE / 8) * 8;
            uint4 of_key = {}, of_value = {};
            if (base + row < keys && column < size) {
                of_key = *(const uint4 *)&key[(base + row) * strides.key_row + column];
                of_value = *(const uint4 *)&value[(base + row) * strides.value_row + column];
            }
            *(uint4 *)&key_tile[row * PITCH + column] = of_key;
            *(uint4 *)&value_tile[row * PITCH + column] = of_value;
        }
        __syncthreads();

        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (int tile = 0; tile < KEYS / 8; tile += 2)
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                u32 keys_of[4];
                u32 row = (tile + matrix / 2) * 8 + lane % 8;
                read_matrices(keys_of, &key_tile[row * PITCH + step * 16 + matrix % 2 * 8]);
                multiply(scores[tile], fragments[step], keys_of[0], keys_of[1]);
                multiply(scores[tile + 1], fragments[step], keys_of[2], keys_of[3]);
            }
        if (base + KEYS > keys) {
#pragma unroll
            for (int tile = 0; tile < KEYS / 8; tile++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (base + tile * 8 + pair + i % 2 >= keys) scores[tile][i] = -infinity();
        }

        float higher[2] = {largest[0], largest[1]};
#pragma unroll
        for (int tile = 0; tile < KEYS / 8; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++) higher[i / 2] = fmaxf(higher[i / 2], scores[tile][i]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            higher[half] = fmaxf(higher[half], __shfl_xor_sync(~0u, higher[half], 1));
            higher[half] = fmaxf(higher[half], __shfl_xor_sync(~0u, higher[half], 2));
            float faded = power_of_two((largest[half] - higher[half]) * scale);
            largest[half] = higher[half];
            total[half] *= faded;
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                result[tile][2 * half] *= faded;
                result[tile][2 * half + 1] *= faded;
            }
        }
        float shift[2] = {-largest[0] * scale, -largest[1] * scale};
#pragma unroll
        for (int tile = 0; tile < KEYS / 8; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                scores[tile][i] = power_of_two(fmaf(scores[tile][i], scale, shift[i / 2]));
                total[i / 2] += scores[tile][i];
            }

#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            float *low = scores[2 * step], *high = scores[2 * step + 1];
            u32 weights[4] = {halves(low[0], low[1]), halves(low[2], low[3]), halves(high[0], high[1]),
                              halves(high[2], high[3])};
            u32 row = step * 16 + matrix % 2 * 8 + lane % 8;
#pragma unroll
            for (int tile = 0; tile < TILES; tile += 2) {
                u32 values_of[4];
                read_transposed(values_of, &value_tile[row * PITCH + (tile + matrix / 2) * 8]);
                multiply(result[tile], weights, values_of[0], values_of[1]);
                if (tile + 1 < TILES) multiply(result[tile + 1], weights, values_of[2], values_of[3]);
            }
        }
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(~0u, total[half], 1);
        total[half] += __shfl_xor_sync(~0u, total[half], 2);
        u32 row = first + half * 8;
        if (row >= queries) continue;
        f16 *to = output + (u64)(item * queries + row) * channels + head * size + pair;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
            if (tile * 8 < size)
                *(u32 *)&to[tile * 8] =
                    halves(result[tile][2 * half] / total[half], result[tile][2 * half + 1] / total[half]);
    }
}
