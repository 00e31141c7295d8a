// Router of a mixture of experts: choice of experts, dispatch of tokens, gate weights, auxiliary losses. A warp per token.
#pragma once
#include "common.cuh"

struct Router {
    int experts;
    int top_k;
    // 1: scores are sigmoids of the logits, 0: their softmax.
    int is_sigmoid;
    int renormalize;
    int groups;
    int top_groups;
    float scaling;
};

// Parts of a dispatch of `assignments` token-expert pairs: slots are sorted by expert, then by token.
struct Dispatch {
    // Slots of each expert, and first slot of each expert and the end.
    int *load;
    int *offsets;
    int *assignment_of_slot;
    int *slot_of_assignment;
    int *expert_of_assignment;
};

__device__ __forceinline__ Dispatch dispatch_at(int *all, int experts, int64 assignments) {
    int *assignment_of_slot = all + 2 * experts + 1;
    return {all, all + experts, assignment_of_slot, assignment_of_slot + assignments, assignment_of_slot + 2 * assignments};
}

// Writes the scores of a token to memory of this warp; returns the log-sum-exp of the logits.
__device__ __forceinline__ float router_scores(const Router &r, const float *logits, float *scores) {
    float largest = -INFINITY;
    for (int e = lane(); e < r.experts; e += WARP_SIZE) largest = fmaxf(largest, logits[e]);
    largest = warp_max(largest);
    float total = 0.0f;
    for (int e = lane(); e < r.experts; e += WARP_SIZE) total += expf(logits[e] - largest);
    total = warp_sum(total);
    for (int e = lane(); e < r.experts; e += WARP_SIZE)
        scores[e] = r.is_sigmoid ? 1.0f / (1.0f + expf(-logits[e])) : expf(logits[e] - largest) / total;
    __syncwarp();
    return largest + logf(total);
}

// A number of a token with its index; an index of -1 means none.
struct Candidate {
    float key;
    int index;
};

__device__ __forceinline__ bool is_better(const Candidate &a, const Candidate &b) {
    if (a.index < 0 || b.index < 0) return b.index < 0 && a.index >= 0;
    return a.key > b.key || (a.key == b.key && a.index < b.index);
}

// Returns the largest of `count` keys that is not taken, the first of equal ones, for all lanes of a warp.
template <class IsTaken>
__device__ __forceinline__ Candidate largest_of(const float *keys, int count, const IsTaken &is_taken) {
    Candidate best = {0.0f, -1};
    for (int i = lane(); i < count; i += WARP_SIZE) {
        const Candidate candidate = {keys[i], i};
        if (!is_taken(i) && is_better(candidate, best)) best = candidate;
    }
    for (int mask = WARP_SIZE / 2; mask > 0; mask /= 2) {
        const Candidate other = {__shfl_xor_sync(ALL_LANES, best.key, mask), __shfl_xor_sync(ALL_LANES, best.index, mask)};
        if (is_better(other, best)) best = other;
    }
    return best;
}

struct SelectExperts {
    const float *logits;
    // Added to the scores; null: none.
    const float *bias;
    // (tokens, top_k)
    int *selected;
    int64 tokens;
    Router router;
};

// NaN counts as the largest number, so that it propagates to the weights.
__device__ __forceinline__ float nan_first(float key) { return key != key ? INFINITY : key; }

// Shared memory of a warp: keys and marks of experts, then those of groups.
__device__ __forceinline__ void select_experts_of_tokens(const SelectExperts &a) {
    SHARED(float, shared);
    const Router &r = a.router;
    float *keys = shared + warp() * 2 * (r.experts + r.groups);
    float *taken = keys + r.experts, *group_keys = taken + r.experts, *chosen = group_keys + r.groups;
    const int size = r.experts / r.groups;
    for (int64 token = int64(blockIdx.x) * warps() + warp(); token < a.tokens; token += int64(gridDim.x) * warps()) {
        router_scores(r, a.logits + token * r.experts, keys);
        for (int e = lane(); e < r.experts; e += WARP_SIZE) {
            keys[e] = nan_first(a.bias == nullptr ? keys[e] : keys[e] + a.bias[e]);
            taken[e] = 0.0f;
        }
        for (int g = lane(); g < r.groups; g += WARP_SIZE) chosen[g] = r.top_groups == r.groups;
        __syncwarp();
        if (r.top_groups < r.groups) {
            // A group is ranked by its best expert, with a bias by the sum of its two best.
            for (int g = lane(); g < r.groups; g += WARP_SIZE) {
                float first = -INFINITY, second = -INFINITY;
                for (int e = g * size; e < (g + 1) * size; ++e) {
                    if (keys[e] > first) {
                        second = first;
                        first = keys[e];
                    } else {
                        second = fmaxf(second, keys[e]);
                    }
                }
                group_keys[g] = a.bias == nullptr || size == 1 ? first : nan_first(first + second);
            }
            __syncwarp();
            for (int i = 0; i < r.top_groups; ++i) {
                const Candidate best = largest_of(group_keys, r.groups, [&](int g) { return chosen[g] != 0.0f; });
                if (lane() == 0) chosen[best.index] = 1.0f;
                __syncwarp();
            }
        }
        for (int i = 0; i < r.top_k; ++i) {
            const Candidate best = largest_of(keys, r.experts, [&](int e) { return taken[e] != 0.0f || chosen[e / size] == 0.0f; });
            if (lane() == 0) {
                taken[best.index] = 1.0f;
                a.selected[token * r.top_k + i] = best.index;
            }
            __syncwarp();
        }
    }
}

KERNEL(select_experts, SelectExperts, select_experts_of_tokens)

struct DispatchTokens {
    int *dispatch;
    int64 assignments;
    int experts;
};

// A warp per expert counts its assignments.
__device__ __forceinline__ void count_assignments(const DispatchTokens &a) {
    const Dispatch d = dispatch_at(a.dispatch, a.experts, a.assignments);
    for (int e = int(blockIdx.x) * warps() + warp(); e < a.experts; e += int(gridDim.x) * warps()) {
        int count = 0;
        for (int64 first = 0; first < a.assignments; first += WARP_SIZE) {
            const int64 i = first + lane();
            count += __popc(__ballot_sync(ALL_LANES, i < a.assignments && d.expert_of_assignment[i] == e));
        }
        if (lane() == 0) d.load[e] = count;
    }
}

KERNEL(dispatch_load, DispatchTokens, count_assignments)

// Runs in one thread.
__device__ __forceinline__ void sum_loads(const DispatchTokens &a) {
    if (thread() != 0) return;
    const Dispatch d = dispatch_at(a.dispatch, a.experts, a.assignments);
    d.offsets[0] = 0;
    for (int e = 0; e < a.experts; ++e) d.offsets[e + 1] = d.offsets[e] + d.load[e];
}

KERNEL(dispatch_offsets, DispatchTokens, sum_loads)

// A warp per expert gives its assignments slots, in their order.
__device__ __forceinline__ void assign_slots(const DispatchTokens &a) {
    const Dispatch d = dispatch_at(a.dispatch, a.experts, a.assignments);
    for (int e = int(blockIdx.x) * warps() + warp(); e < a.experts; e += int(gridDim.x) * warps()) {
        int next = d.offsets[e];
        for (int64 first = 0; first < a.assignments; first += WARP_SIZE) {
            const int64 i = first + lane();
            const bool is_own = i < a.assignments && d.expert_of_assignment[i] == e;
            const unsigned all = __ballot_sync(ALL_LANES, is_own);
            if (is_own) {
                const int slot = next + __popc(all & ((1u << lane()) - 1));
                d.assignment_of_slot[slot] = int(i);
                d.slot_of_assignment[i] = slot;
            }
            next += __popc(all);
        }
    }
}

KERNEL(dispatch_slots, DispatchTokens, assign_slots)

struct GateWeights {
    const float *logits;
    int *dispatch;
    // (tokens, top_k)
    float *weights;
    // Gradient of the weights, and of the logits; null in the forward pass.
    const float *dweights;
    float *dlogits;
    int64 tokens;
    Router router;
};

// Added to sums of sigmoids, which may underflow.
constexpr float SIGMOID_SUM_EPS = 1e-20f;

// Writes the scores of a token, as gate weights divide them; returns the denominator of the weights.
//
// The softmax over the selected experts alone is that over all experts, renormalized, but does not underflow if a bias
// selected experts far below the best one.
__device__ __forceinline__ float gate_scores(const Router &r, const float *logits, const int *selected, float *scores) {
    if (!r.renormalize || r.is_sigmoid) {
        router_scores(r, logits, scores);
        if (!r.renormalize) return 1.0f;
    } else {
        float largest = -INFINITY;
        for (int j = 0; j < r.top_k; ++j) largest = fmaxf(largest, logits[selected[j]]);
        for (int e = lane(); e < r.experts; e += WARP_SIZE) scores[e] = 0.0f;
        __syncwarp();
        for (int j = lane(); j < r.top_k; j += WARP_SIZE) scores[selected[j]] = expf(logits[selected[j]] - largest);
        __syncwarp();
    }
    float sum = 0.0f;
    for (int j = 0; j < r.top_k; ++j) sum += scores[selected[j]];
    return r.is_sigmoid ? sum + SIGMOID_SUM_EPS : sum;
}

__device__ __forceinline__ void gate_weights_of_tokens(const GateWeights &a) {
    SHARED(float, shared);
    const Router &r = a.router;
    float *scores = shared + warp() * r.experts;
    const Dispatch d = dispatch_at(a.dispatch, r.experts, a.tokens * r.top_k);
    for (int64 token = int64(blockIdx.x) * warps() + warp(); token < a.tokens; token += int64(gridDim.x) * warps()) {
        const int *selected = d.expert_of_assignment + token * r.top_k;
        const float total = gate_scores(r, a.logits + token * r.experts, selected, scores);
        for (int j = lane(); j < r.top_k; j += WARP_SIZE) a.weights[token * r.top_k + j] = r.scaling * scores[selected[j]] / total;
        __syncwarp();
    }
}

KERNEL(gate_weights, GateWeights, gate_weights_of_tokens)

// Gradient of a logit from those of the scores ds, with mean = sum of s ds over the experts.
__device__ __forceinline__ float score_gradient(const Router &r, float s, float ds, float mean) {
    return r.is_sigmoid ? s * (1.0f - s) * ds : s * (ds - mean);
}

// Shared memory of a warp: scores and their gradients.
__device__ __forceinline__ void gate_weight_gradients_of_tokens(const GateWeights &a) {
    SHARED(float, shared);
    const Router &r = a.router;
    float *scores = shared + warp() * 2 * r.experts, *dscores = scores + r.experts;
    const Dispatch d = dispatch_at(a.dispatch, r.experts, a.tokens * r.top_k);
    for (int64 token = int64(blockIdx.x) * warps() + warp(); token < a.tokens; token += int64(gridDim.x) * warps()) {
        const int *selected = d.expert_of_assignment + token * r.top_k;
        const float *dweights = a.dweights + token * r.top_k;
        const float total = gate_scores(r, a.logits + token * r.experts, selected, scores);
        for (int e = lane(); e < r.experts; e += WARP_SIZE) dscores[e] = 0.0f;
        __syncwarp();
        // The denominator depends on the score of every selected expert.
        float common = 0.0f;
        if (r.renormalize)
            for (int j = 0; j < r.top_k; ++j) common += scores[selected[j]] / total * dweights[j];
        for (int j = lane(); j < r.top_k; j += WARP_SIZE) dscores[selected[j]] = r.scaling * (dweights[j] - common) / total;
        __syncwarp();
        float mean = 0.0f;
        for (int e = lane(); e < r.experts; e += WARP_SIZE) mean += scores[e] * dscores[e];
        mean = warp_sum(mean);
        // Renormalized, the weights do not depend on the other experts: what the mean would be is zero.
        if (r.renormalize && !r.is_sigmoid) mean = 0.0f;
        for (int e = lane(); e < r.experts; e += WARP_SIZE)
            a.dlogits[token * r.experts + e] = score_gradient(r, scores[e], dscores[e], mean);
        __syncwarp();
    }
}

KERNEL(gate_weight_gradients, GateWeights, gate_weight_gradients_of_tokens)

struct RouterLosses {
    const float *logits;
    int *dispatch;
    // (tokens, 3): contributions to load-balancing loss, z-loss and entropy.
    double *of_tokens;
    // Sums: single precision, one each, and all three in double precision.
    float *load_balancing;
    float *z;
    float *entropy;
    double *all;
    // Gradients of load-balancing loss and z-loss, one element each, and of the logits; null in the forward pass.
    const float *dload_balancing;
    const float *dz;
    float *dlogits;
    int64 tokens;
    Router router;
};

// Sum of the scores of a token, from those of each lane.
__device__ __forceinline__ float sum_of_scores(const Router &r, float of_lane) {
    const float sum = warp_sum(of_lane);
    return r.is_sigmoid ? sum + SIGMOID_SUM_EPS : sum;
}

// Load of an expert relative to a balanced load.
__device__ __forceinline__ float relative_load(const RouterLosses &a, const Dispatch &d, int e) {
    return float(a.router.experts) * float(d.load[e]) / (float(a.tokens) * float(a.router.top_k));
}

__device__ __forceinline__ void router_losses_of_tokens(const RouterLosses &a) {
    SHARED(float, shared);
    const Router &r = a.router;
    float *scores = shared + warp() * r.experts;
    const Dispatch d = dispatch_at(a.dispatch, r.experts, a.tokens * r.top_k);
    for (int64 token = int64(blockIdx.x) * warps() + warp(); token < a.tokens; token += int64(gridDim.x) * warps()) {
        const float lse = router_scores(r, a.logits + token * r.experts, scores);
        float total = 0.0f;
        for (int e = lane(); e < r.experts; e += WARP_SIZE) total += scores[e];
        total = sum_of_scores(r, total);
        float balance = 0.0f, entropy = 0.0f;
        for (int e = lane(); e < r.experts; e += WARP_SIZE) {
            const float p = scores[e] / total;
            balance += relative_load(a, d, e) * p;
            // p log p tends to 0 with p.
            entropy -= p == 0.0f ? 0.0f : p * logf(p);
        }
        balance = warp_sum(balance);
        entropy = warp_sum(entropy);
        if (lane() == 0) {
            a.of_tokens[3 * token] = double(balance);
            a.of_tokens[3 * token + 1] = double(lse) * double(lse);
            a.of_tokens[3 * token + 2] = double(entropy);
        }
        __syncwarp();
    }
}

KERNEL(router_losses, RouterLosses, router_losses_of_tokens)

// Means over the tokens, in one block.
__device__ __forceinline__ void router_loss_means_of(const RouterLosses &a) {
    SHARED(double, scratch);
    float *const single[3] = {a.load_balancing, a.z, a.entropy};
    for (int i = 0; i < 3; ++i) {
        double sum = 0.0;
        for (int64 token = threadIdx.x; token < a.tokens; token += blockDim.x) sum += a.of_tokens[3 * token + i];
        sum = block_sum(sum, scratch) / double(a.tokens > 0 ? a.tokens : 1);
        if (threadIdx.x == 0) {
            single[i][0] = float(sum);
            a.all[i] = sum;
        }
    }
}

KERNEL(router_loss_means, RouterLosses, router_loss_means_of)

__device__ __forceinline__ void router_loss_gradients_of_tokens(const RouterLosses &a) {
    SHARED(float, shared);
    const Router &r = a.router;
    float *scores = shared + warp() * r.experts;
    const Dispatch d = dispatch_at(a.dispatch, r.experts, a.tokens * r.top_k);
    const float n = float(a.tokens);
    for (int64 token = int64(blockIdx.x) * warps() + warp(); token < a.tokens; token += int64(gridDim.x) * warps()) {
        const float *logits = a.logits + token * r.experts;
        const float lse = router_scores(r, logits, scores);
        float total = 0.0f, weighted = 0.0f;
        for (int e = lane(); e < r.experts; e += WARP_SIZE) {
            total += scores[e];
            weighted += scores[e] * (a.dload_balancing[0] * relative_load(a, d, e) / n);
        }
        total = sum_of_scores(r, total);
        // p = score / total, and the total depends on every score.
        const float common = warp_sum(weighted) / total;
        float mean = 0.0f;
        for (int e = lane(); e < r.experts; e += WARP_SIZE)
            mean += scores[e] * ((a.dload_balancing[0] * relative_load(a, d, e) / n - common) / total);
        mean = warp_sum(mean);
        // The derivative of logsumexp is the softmax.
        const float dlse = a.dz[0] * 2.0f * lse / n;
        for (int e = lane(); e < r.experts; e += WARP_SIZE) {
            const float ds = (a.dload_balancing[0] * relative_load(a, d, e) / n - common) / total;
            a.dlogits[token * r.experts + e] = dlse * expf(logits[e] - lse) + score_gradient(r, scores[e], ds, mean);
        }
        __syncwarp();
    }
}

KERNEL(router_loss_gradients, RouterLosses, router_loss_gradients_of_tokens)
