# Does not parse, so every request fails.
{ system }:
{
  hello = derivation { name = "hello" system = system; };
}
