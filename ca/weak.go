package ca

import (
	"crypto/rsa"
	"math/big"
)

// weakRSA tells why an RSA key is known to be weak, "" if it is not: its exponent, a small factor, two factors that are
// close to each other, or the fingerprint of the Infineon library's keys (ROCA, CVE-2017-15361). The lists of keys that
// Debian's OpenSSL could make in 2006-2008 (CVE-2008-0166) are not checked: they are not at hand here, and such keys
// come from systems that speak no TLS 1.3.
func weakRSA(key *rsa.PublicKey) string {
	switch {
	case key.E < 65537 || key.E%2 == 0:
		return "its public exponent is even or less than 65537"
	case smallFactor(key.N):
		return "its modulus has a small factor"
	case roca(key.N):
		return "it has the fingerprint of CVE-2017-15361 (ROCA)"
	case closeFactors(key.N):
		return "its factors are close to each other"
	}
	return ""
}

// smallPrimes are the primes below 752, as many as boulder tries.
func smallPrimes() []int64 {
	var primes []int64
	for n := int64(2); n < 752; n++ {
		if big.NewInt(n).ProbablyPrime(0) { // exact below 2^64
			primes = append(primes, n)
		}
	}
	return primes
}

func smallFactor(n *big.Int) bool {
	product := big.NewInt(1)
	for _, p := range smallPrimes() {
		product.Mul(product, big.NewInt(p))
	}
	return new(big.Int).GCD(nil, nil, product, n).Cmp(big.NewInt(1)) != 0
}

// roca tells whether n is a power of 65537 modulo each of the primes in which that is rare (Nemec et al., "The Return of
// Coppersmith's Attack", section 3; the primes are those of the authors' detector). For a random n the odds are 2^-27.
func roca(n *big.Int) bool {
	for _, p := range []int64{11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157} {
		want := new(big.Int).Mod(n, big.NewInt(p)).Int64()
		power, found := int64(1), false
		for range p {
			if power == want {
				found = true
				break
			}
			power = power * 65537 % p
		}
		if !found {
			return false
		}
	}
	return true
}

const fermatRounds = 100 // as boulder's goodkey

// closeFactors tries Fermat's method: n = a^2 - b^2 for an a just above the root of n.
func closeFactors(n *big.Int) bool {
	one := big.NewInt(1)
	a := new(big.Int).Sqrt(n)
	if new(big.Int).Mul(a, a).Cmp(n) < 0 {
		a.Add(a, one)
	}
	var square, root big.Int
	for range fermatRounds {
		square.Mul(a, a)
		square.Sub(&square, n)
		root.Sqrt(&square)
		if root.Mul(&root, &root).Cmp(&square) == 0 {
			return true
		}
		a.Add(a, one)
	}
	return false
}
