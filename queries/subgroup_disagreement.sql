-- Which features contribute differently among subgroups: sexes, age bands, sites.
--
-- One row a feature, discoveries first, each by the difference of its mean contributions per prediction between the two
-- subgroups that differ most surely. p_value is that of the pair times the number of pairs (Bonferroni), with the widest
-- possible error where patients recur in several subgroups (no test below 60 effective patients in each); q_value is the false discovery rate among all n_tested features,
-- and is_discovery says whether it is at most false_discovery_rate. signs_differ: the interval of one subgroup lies below
-- 0, and that of another above.
-- Arguments: subgroups, the name of a kind of strata; level, split, class, run, top, min_patients (in each subgroup),
-- false_discovery_rate.
-- Example: whenwhy query STORE subgroup_disagreement subgroups=sex top=5
create or replace temp macro subgroup_disagreement(
    subgroups := 'sex', level := 'code', split := 'held_out', class := 'all', run := null, top := 20, min_patients := 11,
    false_discovery_rate := 0.05
) as table
select
    row_number() over (
        order by coalesce(d.q_value <= false_discovery_rate::double, false) desc, abs(d.difference) desc, d.code, d.feature_value_id
    )::integer as rank,
    d.code, d.feature_value_id, d.description, d.n_subgroups, d.stratum_a, d.stratum_b, d.n_patients_a, d.n_patients_b,
    d.mean_a, d.mean_b, d.difference, d.p_value, d.q_value, d.n_tested,
    d.q_value <= false_discovery_rate::double as is_discovery, d.signs_differ
from disagreement_for(run, level, split, class, subgroups, min_patients) d
qualify rank <= top::integer
order by rank;
