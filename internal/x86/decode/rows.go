package decode

// A row is an encoding, as table.txt has it.
type row struct {
	flags Flags
	op    Op
	size  sizeRule
	pfx   uint8 // its mandatory prefix
	nspec uint8
	specs [4]spec
}

// A spec is an operand's place, width and, where it is fixed, register.
type spec struct{ how, wide, reg uint8 }

// The places of operands, by the table's letters.
const (
	argNone = iota
	argE
	argG
	argM
	argR
	argZ
	argI  // zero-extended
	argIs // a byte, sign-extended
	argJ
	argO
	argA
	argS
	argC
	argD
	argV
	argW
	argU
	argP
	argQ
	argN
	argST
	argSTi
	argBD
	argFixed
	argSeg
	argOne
	argH // VEX.vvvv: a vector register
	argB // VEX.vvvv: a general register
	argL // is4: a vector register
)

// Widths that are not a number of bytes.
const (
	wideV = iota + 64
	wideZ
	wideY
	wideMode
	wideP
	wideS
	wideA
	wideVW
	wideDB
	wideDW
	wideL // 16, with VEX.L 32; the others are a half, a quarter, an eighth of it
	wideL2
	wideL4
	wideL8
)

// A sizeRule says how Inst.Size comes about.
type sizeRule uint8

const (
	sizeV    sizeRule = iota // 66 and REX.W
	size1                    // fixed, as are the next four
	size2                    //
	size4                    //
	size8                    //
	size16                   //
	sizeY                    // 4, or 8 with REX.W
	sizeZ                    // as sizeV, at most 4
	sizeMode                 // 8 in 64-bit mode, else as sizeV
	sizeD64                  // in 64-bit mode 8, or 2 with 66
	sizeF64                  // in 64-bit mode 8
)

// Kinds of the tree's inner nodes: what chooses the child. A feature's number is in the bits from 8.
const (
	byMode = iota
	byPrefix
	byMod
	byReg
	byRM
	byW
	byB
	byL
	byFeature
)

// inner marks an entry of the tree that is a node's place, not a row's number.
const inner = 0x8000

// Features is a set of instruction-set extensions that a processor has beyond those of every x86-64 processor.
type Features uint64
