// Package spring holds the configuration of a Spring Boot service as an example (docs/spring.md). Only its tests are Go: they
// hold the files to what can be held without Spring. It never fetches anything, and no program imports it.
package spring
