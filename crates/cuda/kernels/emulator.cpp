// All kernels, compiled for the processor.
#include "emulator.h"

#include "activation.cuh"
#include "adamw.cuh"
#include "attention.cuh"
#include "attention_mma.cuh"
#include "attention_mma_grad.cuh"
#include "attention_stats.cuh"
#include "cross_entropy.cuh"
#include "decode.cuh"
#include "elementwise.cuh"
#include "embedding.cuh"
#include "emulator_tests.cuh"
#include "experts.cuh"
#include "experts_mma.cuh"
#include "latent.cuh"
#include "muon.cuh"
#include "norm.cuh"
#include "qkv.cuh"
#include "rope_table.cuh"
#include "router.cuh"
#include "rows.cuh"
#include "tensor_stats.cuh"
#include "unit.cuh"

#ifdef HYBRIDNORM_CUDA_SWITCH
// void hybridnorm_cuda_switch(void **from, void **to): saves the registers that a function must restore.
asm(R"(
    .text
    .globl hybridnorm_cuda_switch
hybridnorm_cuda_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .section .note.GNU-stack,"",@progbits
    .text
)");
#endif

extern "C" emulator::Kernel hybridnorm_cuda_kernel(unsigned index) {
    return index < emulator::kernels().size() ? emulator::kernels()[index] : emulator::Kernel{nullptr, nullptr};
}

extern "C" int hybridnorm_cuda_run(void (*function)(const void *), const void *arguments, unsigned blocks,
                                   unsigned threads, unsigned shared_bytes, int order) {
    return emulator::run(function, arguments, blocks, threads, shared_bytes, order);
}
