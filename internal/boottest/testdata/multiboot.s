# A multiboot-1 kernel: says its command line and what its first module holds on COM1, then leaves by the debug-exit port.
# as --32 -o m.o multiboot.s && ld -m elf_i386 -Ttext 0x100000 --oformat binary -o multiboot.bin m.o && rm m.o
	.intel_syntax noprefix
	.globl	_start
	.set	flags, 0x10003		# page alignment, memory, addresses below
_start:
header:	.long	0x1BADB002, flags, -(0x1BADB002 + flags)
	.long	header, _start, 0, end, entry
entry:	mov	esp, offset end
	cmp	eax, 0x2BADB002
	jne	fail
	mov	ebp, ebx
	mov	esi, offset hello
	call	print
	mov	esi, [ebp + 16]		# cmdline
	call	print
	mov	esi, offset says
	call	print
	cmp	dword ptr [ebp + 20], 1	# mods_count
	jne	fail
	mov	eax, [ebp + 24]		# mods_addr
	mov	esi, [eax]		# mod_start
	mov	ecx, [eax + 4]		# mod_end
	sub	ecx, esi
	call	write
	mov	esi, offset newline
	call	print
	mov	al, 0x10
	out	0xF4, al		# status 0x10*2+1
fail:	mov	al, 0x7F
	out	0xF4, al
halt:	cli
	hlt
	jmp	halt

# print writes the string at esi, which ends with a zero byte.
print:	xor	ecx, ecx
1:	cmp	byte ptr [esi + ecx], 0
	je	write
	inc	ecx
	jmp	1b
# write writes ecx bytes at esi.
write:	jecxz	3f
1:	mov	dx, 0x3FD
2:	in	al, dx
	test	al, 0x20		# transmitter empty
	jz	2b
	mov	dx, 0x3F8
	lodsb
	out	dx, al
	loop	1b
3:	ret

hello:	.asciz	"multiboot: "
says:	.asciz	"; module: "
newline: .asciz	"\n"
	.bss
	.skip	4096
end:
