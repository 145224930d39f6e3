#!/bin/sh
# Makes bench.bin of bench.c: flat 64-bit code for address 0x200000.
set -e
cat > head.s <<'S'
.globl _start
_start: call start
hlt
S
cat > bench.ld <<'L'
SECTIONS { . = 0x200000; .text : { head.o(.text) *(.text*) } .rodata : { *(.rodata*) } .data : { *(.data*) } .bss : { *(.bss*) *(COMMON) }
/DISCARD/ : { *(.comment) *(.note*) *(.eh_frame*) } }
L
gcc -O2 -fno-pic -no-pie -mno-red-zone -fno-tree-vectorize -fno-stack-protector -fcf-protection=none -nostdlib -c bench.c
as head.s -o head.o
ld -T bench.ld bench.o head.o -o bench.elf
objcopy -O binary bench.elf bench.bin
rm head.s bench.ld bench.o head.o bench.elf
