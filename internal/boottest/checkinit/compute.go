package main

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/big"
	"math/bits"
	"math/rand"
	"slices"
	"strconv"
)

// compute prints results that are the same on every x86-64 processor, whatever features it has: a line each, begun by "compute:".
func compute(w io.Writer) {
	say := func(what string, v any) { fmt.Fprintf(w, "compute: %s %v\n", what, v) }
	r := rand.New(rand.NewSource(1))
	data := make([]byte, 64<<10)
	r.Read(data)
	say("md5", fmt.Sprintf("%x", md5.Sum(data)))
	say("sha1", fmt.Sprintf("%x", sha1.Sum(data)))
	say("sha256", fmt.Sprintf("%x", sha256.Sum256(data)))
	say("sha512", fmt.Sprintf("%x", sha512.Sum512(data)))
	say("crc32", crc32.ChecksumIEEE(data))
	say("crc32c", crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
	if b, err := aes.NewCipher(data[:32]); err == nil {
		if g, err := cipher.NewGCM(b); err == nil {
			sealed := g.Seal(nil, data[:12], data[:8192], nil)
			say("aes-gcm", fmt.Sprintf("%x", sha256.Sum256(sealed)))
		}
	}

	f := 0.0
	for i := range 2000 {
		x := float64(i)*0.37 + 0.01
		// The conversions forbid to fuse a product and a sum, which a processor with FMA could round otherwise.
		f += float64(math.Sqrt(x)) + float64(1/x) + float64(x*x*1e-9) - float64(math.Floor(x/3)) + float64(float32(x)/7)
	}
	say("float", strconv.FormatFloat(f, 'x', -1, 64))
	for _, x := range []float64{0.1, math.Pi, 1e300, 5e-324, math.Inf(1), math.NaN(), math.Copysign(0, -1), 123456789.987654321} {
		say("print", fmt.Sprintf("%v %x %.3e %d", x, x, x, int64(math.Float64bits(x))))
	}
	for _, x := range []float64{-2.5, 1e10, 9.3e18, -9.2e18, 0.49999999999999994} {
		say("convert", fmt.Sprint(int32(int64(x)), int64(x), uint64(math.Abs(x)), float32(x), math.RoundToEven(x), math.Trunc(x)))
	}

	n := new(big.Int).Exp(big.NewInt(3), big.NewInt(5003), nil)
	m := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 2203), big.NewInt(1))
	say("big", fmt.Sprintf("%x", sha256.Sum256(n.Bytes())))
	say("modulus", new(big.Int).Mod(n, m).Text(36)[:40])
	say("factorial", new(big.Int).MulRange(1, 300).BitLen())

	words := make([]uint64, 4000)
	for i := range words {
		words[i] = r.Uint64()
	}
	slices.Sort(words)
	var mix, carry uint64
	for i, x := range words {
		hi, lo := bits.Mul64(x, mix|1)
		mix, carry = bits.Add64(lo, hi, carry)
		mix = bits.RotateLeft64(mix, i) ^ bits.ReverseBytes64(x) + uint64(bits.OnesCount64(x)*bits.TrailingZeros64(x|1<<40)+bits.Len64(x))
		q, rem := bits.Div64(x%1000, mix, 1000)
		mix ^= q + rem
	}
	say("mix", fmt.Sprintf("%x", mix))
}
