# A PVH kernel: says its command line and what its first module holds on COM1, then powers off by ACPI.
# as --32 -o p.o pvh.s && ld -m elf_i386 -n -Ttext-segment 0x200000 -e entry -o pvh.elf p.o && strip pvh.elf && rm p.o
	.intel_syntax noprefix
	.globl	entry
	.section .note.pvh, "a", @note
	.long	4, 4, 18		# XEN_ELFNOTE_PHYS32_ENTRY
	.asciz	"Xen"
	.long	entry
	.text
entry:	mov	esp, offset stack
	cmp	dword ptr [ebx], 0x336EC578
	jne	fail
	mov	ebp, ebx
	mov	esi, offset hello
	call	print
	mov	esi, [ebp + 24]		# cmdline_paddr
	call	print
	mov	esi, offset says
	call	print
	cmp	dword ptr [ebp + 12], 1	# nr_modules
	jne	fail
	mov	eax, [ebp + 16]		# modlist_paddr
	mov	esi, [eax]		# paddr
	mov	ecx, [eax + 8]		# size
	call	write
	mov	esi, offset newline
	call	print
	mov	dx, 0x604		# PM1a control
	mov	ax, 0x3400		# SLP_EN, SLP_TYP 5
	out	dx, ax
fail:	cli
	hlt
	jmp	fail

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

	.data
hello:	.asciz	"pvh: "
says:	.asciz	"; module: "
newline: .asciz	"\n"
	.bss
	.skip	4096
stack:
