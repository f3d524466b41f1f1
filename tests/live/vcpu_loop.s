# The loop of a vCPU's thread, which checks after every KVM_RUN that nothing but its result has changed.
# vmm.py holds its bytes:  as vcpu_loop.s -o loop.o && objcopy -O binary -j .text loop.o loop.bin
#
# rdi: struct { stop, rounds, mismatches, eintr, unexpected, descriptor, kvm_run, slot, last, -, -, brackets; } u64 each,
# at 128 a ring of 1024 brackets { before, guest, after, number }, at 32896 patterns for 16 ymm registers.
    .intel_syntax noprefix
    .set RING, 128
    .set PATTERNS, 32896
    .macro check register, value
    movabs rcx, \value
    cmp \register, rcx
    jne bad
    .endm
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    sub rsp, 0x108
    mov [rsp], rdi
    mov qword ptr [rsp + 48], 0
again:
    mov rax, [rsp]
    cmp qword ptr [rax], 0
    jne leave
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqu ymm\n, [rax + PATTERNS + 32 * \n]
    .endr
    movabs rcx, 0x5a5a5a5a5a5a5a5a
    .irp n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
    mov [rsp - 8 * \n], rcx
    inc rcx
    .endr
    movabs rbx, 0x1b1b1b1b1b1b1b01
    movabs rbp, 0x2b2b2b2b2b2b2b02
    movabs r8, 0x8181818181818103
    movabs r9, 0x9191919191919104
    movabs r10, 0xa1a1a1a1a1a1a105
    movabs r12, 0xc1c1c1c1c1c1c106
    movabs r13, 0xd1d1d1d1d1d1d107
    movabs r14, 0xe1e1e1e1e1e1e108
    movabs r15, 0xf1f1f1f1f1f1f109
    mov rdi, [rax + 40]
    mov esi, 0xae80
    lfence
    rdtsc
    lfence
    shl rdx, 32
    or rax, rdx
    # after an interruption the guest may have read its counter already: the bracket began before it
    cmp qword ptr [rsp + 48], 0
    jne interrupted_before
    mov [rsp + 24], rax
interrupted_before:
    xor edx, edx
    mov eax, 16
    stc
    syscall
    setnc [rsp + 8]
    mov [rsp + 16], rax
    mov [rsp + 40], rdx
    lfence
    rdtsc
    lfence
    shl rdx, 32
    or rax, rdx
    mov [rsp + 32], rax
    mov rax, [rsp]
    check rbx, 0x1b1b1b1b1b1b1b01
    check rbp, 0x2b2b2b2b2b2b2b02
    check r8, 0x8181818181818103
    check r9, 0x9191919191919104
    check r10, 0xa1a1a1a1a1a1a105
    check r12, 0xc1c1c1c1c1c1c106
    check r13, 0xd1d1d1d1d1d1d107
    check r14, 0xe1e1e1e1e1e1e108
    check r15, 0xf1f1f1f1f1f1f109
    check rsi, 0xae80
    cmp rdi, [rax + 40]
    jne bad
    cmp qword ptr [rsp + 40], 0
    jne bad
    cmp byte ptr [rsp + 8], 0
    jne bad
    movabs rcx, 0x5a5a5a5a5a5a5a5a
    .irp n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
    cmp [rsp - 8 * \n], rcx
    jne bad
    inc rcx
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vpcmpeqb ymm\n, ymm\n, [rax + PATTERNS + 32 * \n]
    .endr
    .irp n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vpand ymm0, ymm0, ymm\n
    .endr
    vpmovmskb ecx, ymm0
    cmp ecx, -1
    je right
bad:
    inc qword ptr [rax + 16]
right:
    inc qword ptr [rax + 8]
    mov rcx, [rsp + 16]
    cmp rcx, -4
    je interrupted
    test rcx, rcx
    jne unexpected
    mov rdx, [rax + 48]
    mov ecx, [rdx + 8]
    cmp ecx, 2
    je record
    cmp ecx, 5
    je again
unexpected:
    mov [rax + 64], rcx
    inc qword ptr [rax + 32]
    jmp leave
interrupted:
    inc qword ptr [rax + 24]
    mov qword ptr [rsp + 48], 1
    jmp again
record:
    mov rcx, [rax + 88]
    mov rdx, rcx
    and edx, 1023
    shl edx, 5
    lea rdx, [rax + rdx + RING]
    mov rbx, [rsp + 24]
    mov [rdx], rbx
    mov rbx, [rax + 56]
    mov rbx, [rbx]
    mov [rdx + 8], rbx
    mov rbx, [rsp + 32]
    mov [rdx + 16], rbx
    mov [rdx + 24], rcx
    inc rcx
    mov [rax + 88], rcx
    mov qword ptr [rsp + 48], 0
    jmp again
leave:
    vzeroupper
    add rsp, 0x108
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
